"""The table of tuned hyperparameters: what counts, and what it says."""

import json
import re

import entries_search
import figures
import make_train
import numpy as np
import pytest
import runs
import stable_baselines3
import tuned
import zoo_training
from torch import nn
from zoo_training import CompiledPPO, Training, as_json, entry

from sb3_r2vpo.zoo import hyperparameter_file


def record_of(algorithm, seed, mean_return, **changes):
    training = Training("Hopper-v5", algorithm, seed)
    record = {**training._asdict(), "entry": as_json(entry(training)), "timesteps": 1_000_000, "mean_return": mean_return}
    return {**record, "wall_seconds": 120.0, "cpu_seconds": 60.0, **changes}


def test_the_peers_entries_are_those_of_rl_zoo_for_the_version_before():
    ppo, trpo = (entry(Training("Hopper-v5", algorithm, 0)) for algorithm in ("ppo", "trpo"))
    assert "clip_range" in ppo and "cg_max_steps" in trpo
    assert ppo == entry(Training("Hopper-v4", "ppo", 0))
    assert entry(Training("Hopper-v5", "ppo", 0, {"n_epochs": 3}))["n_epochs"] == 3
    with pytest.raises(ValueError, match=r"r2vpo\.yml has no entry for Nowhere-v0"):
        entry(Training("Nowhere-v0", "r2vpo", 0))


@pytest.mark.parametrize("environment", tuned.ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", tuned.ALGORITHMS)
def test_every_environment_has_an_entry_of_each(environment, algorithm):
    assert entry(Training(environment, algorithm, 0))["n_timesteps"] > 0


def test_runs_with_other_hyperparameters_do_not_count(tmp_path, capsys):
    results = tmp_path / "tuned.jsonl"
    other = record_of("r2vpo", 101, 2.0, entry={"n_steps": 1})
    results.write_text("".join(json.dumps(record) + "\n" for record in (record_of("r2vpo", 100, 1.0), other)))
    assert [record["seed"] for record in tuned.load(results)] == [100]
    assert "1 runs of earlier entries do not count" in capsys.readouterr().err


def test_runs_with_other_defaults_do_not_count(tmp_path):
    assert "defaults" not in tuned.defaults(Training("Hopper-v5", "ppo", 100))
    present = tuned.defaults(Training("Hopper-v5", "r2vpo", 100))
    earlier = {"defaults": {**present["defaults"], "var_coef_bounds": [0.05, 2.0]}}
    records = [record_of("r2vpo", 100, 1.0, **present), record_of("r2vpo", 101, 1.0, **earlier)]
    assert [tuned.is_current(record) for record in records] == [True, False]


def test_only_what_is_missing_is_run_and_named(tmp_path, monkeypatch, capsys):
    results, asked = tmp_path / "tuned.jsonl", []
    trainings = [Training("Hopper-v5", "ppo", 100), Training("Hopper-v5", "ppo", 101, compiled=True)]
    done = [*trainings, Training("Hopper-v5", "r2vpo", 100)]

    def run(training, script, device):
        asked.append(training)
        return record_of(training.algorithm, training.seed, 1.0, compiled=training.compiled)

    monkeypatch.setattr(runs, "run_in_process", run)
    tuned.run_missing(trainings, results, n_jobs=1)
    tuned.run_missing(done, results, n_jobs=1)
    assert asked == done and len(tuned.load(results)) == 3
    assert "Hopper-v5 ppo compiled seed 101: 120 s" in capsys.readouterr().out


@pytest.mark.parametrize("ours, tuned_", [((2000, 2200, 2100, 2000, 2200), True), ((1900, 2000, 1900, 2000, 2200), False)])
def test_an_entry_is_tuned_where_all_seeds_say_that_it_is_not_behind(ours, tuned_):
    peers = [record_of(name, 100 + i, mean) for name, mean in {"ppo": 2100, "trpo": 1600}.items() for i in range(5)]
    records = [*peers, *(record_of("r2vpo", 100 + i, mean_return) for i, mean_return in enumerate(ours))]
    assert tuned.is_tuned(records, "Hopper-v5") is tuned_
    assert not tuned.is_tuned(records[:-1], "Hopper-v5") and not tuned.is_tuned(records[1:], "Hopper-v5")


def test_the_marks_in_the_file_are_those_that_the_results_earn():
    marked = set(re.findall(r"^# Tuned\n([\w-]+):", hyperparameter_file().read_text(), flags=re.MULTILINE))
    records = tuned.load(tuned.RESULTS)
    assert marked == {environment for environment in tuned.ENVIRONMENTS if tuned.is_tuned(records, environment)}


@pytest.mark.parametrize("page", [tuned.README, tuned.REPORT])
def test_the_tables_are_those_of_the_results(page):
    records = tuned.load(tuned.RESULTS)
    environments = [e for e in tuned.ENVIRONMENTS if any(record["environment"] == e for record in records)]
    assert tuned.returns_table(records, environments) in page.read_text()


def test_a_record_has_the_entry_that_its_training_began_with(monkeypatch):
    training = Training("CartPole-v1", "r2vpo", 1, {"n_timesteps": 256})
    begun = entry(training)

    def set_up(training, folder, of_before=zoo_training.set_up):
        experiment = of_before(training, folder)
        # As if the file were edited while it trains
        monkeypatch.setattr(zoo_training, "entry", lambda training: {**begun, "n_envs": 99})
        return experiment

    monkeypatch.setattr(zoo_training, "set_up", set_up)
    monkeypatch.setattr(zoo_training, "N_EVALUATION_STEPS", 1000)
    record = zoo_training.train(training)
    assert record["entry"] == as_json(begun) and record["timesteps"] == 256 and record["n_episodes"] > 0


def test_the_peer_that_is_compiled_computes_what_sb3s_does():
    # RL Zoo's entry of Hopper, with a rate at which three rollouts show
    arguments = dict(batch_size=32, n_steps=512, gamma=0.999, learning_rate=3e-4, ent_coef=0.00229519, gae_lambda=0.99)
    network = dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[256, 256]))
    shared = dict(arguments, n_epochs=5, max_grad_norm=0.7, vf_coef=0.835671, policy_kwargs=network, seed=0, device="cpu")
    start, sb3s, compiled = (
        np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])
        for model in (
            stable_baselines3.PPO("MlpPolicy", "Pendulum-v1", **shared),
            stable_baselines3.PPO("MlpPolicy", "Pendulum-v1", **shared).learn(3 * 512),
            CompiledPPO("MlpPolicy", "Pendulum-v1", **shared).learn(3 * 512),
        )
    )
    assert np.abs(compiled - sb3s).max() < 0.01 * np.abs(sb3s - start).max()


def test_a_clip_range_that_falls_is_not_compiled():
    with pytest.raises(ValueError, match=r"falls from 0\.2 to 0\.0"):
        CompiledPPO("MlpPolicy", "Pendulum-v1", clip_range=lambda progress: 0.2 * progress)


def test_times_are_those_of_each_algorithms_own_code():
    records = [record_of("ppo", 100, 1.0), {**record_of("ppo", 101, 2.0, wall_seconds=40.0), "compiled": True}]
    assert "| Hopper-v5 | – | 2.0 (1.0) for 1,000,000 steps | – |" in tuned.times_table(records, ["Hopper-v5"])


@pytest.mark.parametrize("other", [("Acrobot-v1", "ppo", 101), ("Hopper-v5", "trpo", 101), ("Hopper-v5", "ppo", 100)])
def test_only_later_seeds_of_ppo_are_compiled(other):
    assert tuned.is_compiled("Hopper-v5", "ppo", 101) and not tuned.is_compiled(*other)


def test_the_report_says_mean_spread_and_worst(tmp_path, monkeypatch):
    for name in ("REPORT", "README"):
        (tmp_path / name).write_text("<!-- tuned -->\nold\n<!-- /tuned -->\n")
        monkeypatch.setattr(tuned, name, tmp_path / name)
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    tuned.write_report([record_of("r2vpo", 100, 2000.0), record_of("r2vpo", 101, 3000.0), record_of("ppo", 100, 1500.0)])
    text = (tmp_path / "REPORT").read_text()
    assert "| Hopper-v5 | 2,500 ± 500, worst 2,000 (2 seeds) | 1,500 (1 seed) | – |" in text
    assert "| Hopper-v5 | 2.0 (1.0) for 1,000,000 steps |" in text
    assert "old" not in (tmp_path / "README").read_text()
    assert (tmp_path / "tuned.png").stat().st_size > 1000


def test_what_was_tried_is_told_by_what_is_other(tmp_path, monkeypatch):
    present = as_json(entry(Training("Hopper-v5", "r2vpo", 1)))
    # An argument at its default, or none
    alike = {**present, "max_grad_norm": 0.5, "compile": True}
    assert entries_search.difference(alike, present) == "**the entry**"
    without_bonus = {name: value for name, value in present.items() if name != "ent_coef"}
    assert entries_search.difference({**without_bonus, "gamma": 0.9}, present) == "`gamma: 0.9`, `ent_coef: 0.0`"

    dated = dict(environment="Hopper-v5", timesteps=1_000_000)
    tried = [({**present, "gamma": 0.9}, 1, 10, "2026-11-02"), (alike, 3, 200, "2026-11-03"), (present, 2, 100, "2026-11-02")]
    names = ("entry", "seed", "mean_return", "date")
    monkeypatch.setattr(entries_search, "REPORT", tmp_path / "report.md")
    entries_search.REPORT.write_text("<!-- search -->\n<!-- /search -->\n")
    entries_search.write_report([{**dated, **dict(zip(names, values, strict=True))} for values in tried])
    assert "3 trainings, 3.0M steps." in entries_search.REPORT.read_text()
    assert entries_search.REPORT.read_text().splitlines()[-3:-1] == [
        "| **the entry** | 150 | 100 (2), 200 (3) | 2026-11-02 to 2026-11-03 |",
        "| `gamma: 0.9` | 10 | 10 (1) | 2026-11-02 |",
    ]


def test_what_was_tried_is_all_of_the_results(tmp_path, monkeypatch):
    written = entries_search.REPORT.read_text()
    monkeypatch.setattr(entries_search, "REPORT", tmp_path / "report.md")
    entries_search.REPORT.write_text(written)
    entries_search.write_report(runs.read(entries_search.RESULTS))
    assert entries_search.REPORT.read_text() == written


def test_only_what_was_not_tried_is_run(tmp_path, monkeypatch):
    results, asked = tmp_path / "search.jsonl", []
    trainings = [Training("Hopper-v5", "r2vpo", seed, {"gamma": 0.9}) for seed in (1, 2)]
    trainings.append(trainings[1]._replace(envpool=True))

    def run(training, script, device):
        asked.append(training)
        record = record_of("r2vpo", training.seed, 1.0, date="2026-11-28")
        return {**record, **training._asdict(), "entry": as_json(entry(training))}

    monkeypatch.setattr(runs, "run_in_process", run)
    entries_search.run_missing(trainings[:1], results, n_jobs=1)
    entries_search.run_missing(trainings, results, n_jobs=1)
    assert asked == trainings
    settings = entries_search.settings_table(runs.read(results), as_json(entry(Training("Hopper-v5", "r2vpo", 0))))
    assert "| `gamma: 0.9` | 1 | 1 (1), 1 (2) |" in settings and "| `gamma: 0.9`, on EnvPool | 1 | 1 (2) |" in settings


def test_make_train_counts_seeds_above_the_mark(tmp_path, monkeypatch):
    def record(seed, last, **hyperparameters):
        means, episodes = [1000.0, last], [last - 10, last + 10]
        return dict(seed=seed, hyperparameters=hyperparameters, wall_seconds=240.0, mean_returns=means, last_returns=episodes)

    results = tmp_path / "make_train.jsonl"
    staggered = [{**record(seed, last), "stagger": True} for seed, last in [(1, 6000.0), (0, 5800.0)]]
    records = [record(3, 7000.0, n_envs=8), record(2, 6000.0), *staggered]
    results.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(make_train, "RESULTS", results)
    # In the order of the seeds, and without those of earlier settings
    loaded = make_train.load()
    assert [record["seed"] for record in loaded] == [0, 1]
    table = make_train.returns_table(loaded)
    assert "| seed 0 | 5,800 | 5,790 | 5,800 | 4.0 |" in table
    assert "1 of 2 seeds end, after 3M steps, above 5,819" in table
