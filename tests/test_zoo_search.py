"""Hyperparameter search: the space, studies whose workers die, storages that cannot be used, trials that are trained."""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import optuna
import pytest
import sqlalchemy
import yaml
from gymnasium import spaces
from optuna.trial import FrozenTrial, TrialState
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

pytest.importorskip("rl_zoo3")

from rl_zoo3.utils import SimpleLinearSchedule

from sb3_r2vpo import R2VPO
from sb3_r2vpo.dual import auto_target_var
from sb3_r2vpo.zoo import register, study_storage
from sb3_r2vpo.zoo import study as studies
from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager
from sb3_r2vpo.zoo.hyperparameters import named_schedules
from sb3_r2vpo.zoo.lasting import LastingExperimentManager
from sb3_r2vpo.zoo.repeated import mean_of_trainings, take_trainings_per_trial
from sb3_r2vpo.zoo.search_space import N_FREE, convert_r2vpo_params, first_trial, sample_r2vpo_params, trials_around
from sb3_r2vpo.zoo.study import FINISHED, run_trials
from sb3_r2vpo.zoo.study_storage import find_study, find_trial, open_storage

register()


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def r2vpo(*args, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sb3_r2vpo", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


def manager(log_folder, env_id="CartPole-v1", **kwargs) -> R2VPOExperimentManager:
    """As `r2vpo train` makes it."""
    defaults = dict(n_timesteps=64, hyperparams={"n_envs": 1}, n_evaluations=1, n_eval_episodes=1, verbose=0, seed=1)
    # What an earlier command line of this process resumed is not this one's
    LastingExperimentManager.resumed_run = None
    args = SimpleNamespace(env=env_id, env_kwargs=None, uuid=False, seed=1, vec_env="dummy")
    return R2VPOExperimentManager(args, "r2vpo", env_id, str(log_folder), **{**defaults, **kwargs})


def search(log_folder, **kwargs) -> optuna.Study:
    """One whole search; returns what it leaves behind."""
    searching = manager(log_folder, optimize_hyperparameters=True, **kwargs)
    assert searching.setup_experiment() is None
    searching.hyperparameters_optimization()
    (left_behind,) = Path(log_folder, "r2vpo").glob("report_*.pkl")
    return pickle.loads(left_behind.read_bytes())


# The space


@pytest.mark.parametrize("n_envs", [1, 6])
def test_every_sample_is_a_valid_model_without_a_warning(n_envs):
    env = make_vec_env("CartPole-v1", n_envs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    learned = []
    for _ in range(30):
        arguments = sample_r2vpo_params(study.ask(), 1, n_envs, {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = R2VPO("MlpPolicy", env, **arguments)
        assert model.n_steps * n_envs % model.batch_size == 0
        learned.append(model.dual.learned)
    assert 5 < sum(learned) < 25


def test_large_minibatches_need_many_environments_not_many_steps():
    params = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sample_r2vpo_params(params, 1, 64, {})
    few_steps = {**params.params, "n_steps_pow": 6, "batch_size_pow": 9}
    assert convert_r2vpo_params(few_steps)["batch_size"] == 512
    assert convert_r2vpo_params({**few_steps, "n_envs": 1})["batch_size"] == 64


def test_a_stored_trial_is_converted_to_what_was_trained(tmp_path):
    study = optuna.create_study(storage=open_storage(str(tmp_path / "study.log")))
    for _ in range(10):
        trial = study.ask()
        trained = sample_r2vpo_params(trial, 1, 4, {})
        stored = convert_r2vpo_params(find_study(str(tmp_path / "study.log"), study.study_name).trials[trial.number].params)
        # RL Zoo makes schedules of their names
        stored |= named_schedules(stored)
        assert repr(sorted(stored.items())) == repr(sorted({**trained, "n_envs": 4}.items()))


def test_hyperparameters_of_a_learned_coefficient_only_exist_where_it_is_learned():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        arguments = sample_r2vpo_params(study.ask(), 1, 1, {})
        assert ("target_var" in arguments) == (arguments["var_coef"] == "auto")


def test_a_search_begins_with_the_entry(tmp_path):
    """As near as the space comes to it."""
    entry = dict(n_steps=256, batch_size=128, learning_rate=SimpleLinearSchedule(1e-3), gamma=0.98, max_grad_norm=8)
    entry["policy_kwargs"] = dict(log_std_init=-1, activation_fn=nn.ReLU)
    params = first_trial(entry, spaces.Box(-1, 1, (6,)), n_envs=8)
    expected = dict(learning_rate=1e-3, learning_rate_schedule="linear", n_epochs=10, activation_fn="relu", net_arch="small")
    expected |= dict(log_std_init=-1, var_coef_mode="learned", max_grad_norm=5.0, ent_coef=1e-8)
    assert params.items() >= expected.items()
    study = optuna.create_study()
    study.enqueue_trial(params)
    arguments = sample_r2vpo_params(study.ask(), 6, 8, {})
    assert arguments["policy_kwargs"] == {**entry["policy_kwargs"], "net_arch": dict(pi=[64, 64], vf=[64, 64])}
    assert arguments["target_var"] == pytest.approx(auto_target_var(spaces.Box(-1, 1, (6,)), 2048))
    assert {"n_steps": 256, "batch_size": 128}.items() <= arguments.items() and arguments["gamma"] == pytest.approx(0.98)

    # What is not in the space is sampled
    other = dict(policy_kwargs=dict(net_arch=[32], activation_fn=nn.ELU), var_coef=0.5, target_var=lambda progress: 0.1)
    params = first_trial(other, spaces.Discrete(2), n_envs=1)
    assert not {"net_arch", "activation_fn", "log_std_init", "target_var"} & set(params) and params["var_coef"] == 0.5
    for unlike in (dict(policy_kwargs=dict(net_arch=dict(pi=[64]))), dict(policy="CnnPolicy")):
        assert "net_arch" not in first_trial(unlike, spaces.Discrete(2), n_envs=1)
    # Two degrees of freedom
    params = first_trial(dict(n_steps=256), spaces.Discrete(3), n_envs=16)
    assert params["target_var"] == auto_target_var(spaces.Discrete(3), 4096) == pytest.approx(0.016)
    study = search(tmp_path, hyperparams={"n_steps": 64, "learning_rate": 2e-3}, n_trials=1)
    assert study.trials[0].params.items() >= dict(n_steps_pow=6, learning_rate=2e-3, learning_rate_schedule="constant").items()


def test_a_search_goes_on_around_the_entry(tmp_path):
    first = first_trial(dict(n_steps=64, learning_rate=2e-3), spaces.Discrete(2), n_envs=1)
    around = trials_around(first, 90, seed=0)
    assert all(params.items() <= first.items() and len(first) - len(params) == N_FREE for params in around)
    # Each value has its turn
    assert set.union(*(first.keys() - params.keys() for params in around[:9])) == set(first)

    entry = {"n_steps": 64, "learning_rate": 2e-3, "max_grad_norm": 0.7}
    study = search(tmp_path / "tpe", hyperparams=entry, n_trials=4, n_startup_trials=3)
    kept = [sum(t.params[name] == study.trials[0].params[name] for name in first if name in t.params) for t in study.trials]
    assert kept[0] == len(first) and all(len(first) - N_FREE <= n for n in kept[:3]) and kept[3] < len(first) - N_FREE
    study = search(tmp_path / "random", hyperparams=entry, n_trials=2, n_startup_trials=3, sampler="random")
    assert study.trials[1].params["learning_rate"] != 2e-3 and study.trials[1].params["max_grad_norm"] != 0.7


def test_tpe_samples_conditional_hyperparameters_jointly(tmp_path, monkeypatch):
    sampler = manager(tmp_path, n_startup_trials=4)._create_sampler("tpe")
    study = optuna.create_study(sampler=sampler)
    independent = []
    sample = type(sampler).sample_independent

    def record(self, study, trial, name, distribution):
        independent.append((trial.number, name))
        return sample(self, study, trial, name, distribution)

    monkeypatch.setattr(type(sampler), "sample_independent", record)
    study.optimize(lambda trial: sample_r2vpo_params(trial, 1, 1, {})["gamma"], n_trials=20)
    assert len({number for number, _ in independent}) >= 4
    assert not [(number, name) for number, name in independent if number > 10]


# A search from its command to the trained trial


def test_search_then_train_its_trials(tmp_path):
    where = ["--storage", "logs/study.log", "--study-name", "small"]
    # A seed with small networks and short rollouts
    few = ["--env", "CartPole-v1", "-f", "logs", "--num-threads", "1", "-params", "n_envs:1", "--seed", "66", *where]
    space = ["--optimize", "--max-total-trials", "3", "-n", "64", "--n-evaluations", "1", "--eval-episodes", "1"]
    space += ["--trainings-per-trial", "2"]
    run = r2vpo("train", *few, *space, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Trials: 3 complete" in run.stdout
    said = dict(line.split(":", 1) for line in run.stdout[run.stdout.index("Table of trials:") :].strip().splitlines())
    assert set(said) == {"Table of trials", "Study", "History", "Importances"}
    for label in ("History", "Importances"):
        assert (tmp_path / said[label].strip()).read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / said["Table of trials"].strip()).read_text().splitlines()) == 4

    study = find_study(str(tmp_path / "logs/study.log"), "small")
    assert study.user_attrs["command"].endswith("--trainings-per-trial 2")
    assert all(len(trial.user_attrs["trainings"]) == 2 for trial in study.trials)
    run = r2vpo("train", *few, "-n", "32", "--eval-freq", "-1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert f"Hyperparameters of trial {study.best_trial.number} of study 'small'" in run.stdout
    (config,) = [line for line in run.stdout.splitlines() if line.startswith("Hyperparameters:")]
    saved = yaml.load((tmp_path / config.split()[1]).read_text(), Loader=yaml.UnsafeLoader)
    assert dict(saved).items() >= {**convert_r2vpo_params(study.best_trial.params), "n_envs": 1}.items()

    # The run has its hyperparameters, whatever becomes of the study
    (tmp_path / "logs/study.log").unlink()
    run = r2vpo("train", "--resume", "logs/r2vpo/CartPole-v1_1", "-n", "10000", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    run = r2vpo("train", *few, cwd=tmp_path)
    assert "`--storage` is 'logs/study.log': there is no such journal" in run.stderr
    assert not (tmp_path / "logs/study.log").exists()


def test_a_trial_is_the_mean_of_its_trainings(tmp_path, monkeypatch):
    monkeypatch.setattr(R2VPOExperimentManager, "trainings_per_trial", 3)
    study = search(tmp_path, n_timesteps=128, n_evaluations=2, n_trials=2, pruner="none")
    for trial in study.trials:
        # Each training from weights of its own, and evaluated twice
        assert len(trial.user_attrs["trainings"]) == 3 and len(set(trial.user_attrs["trainings"])) > 1
        assert trial.value == pytest.approx(np.mean(trial.user_attrs["trainings"]))
        assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]


def test_a_trial_can_be_pruned_in_any_training():
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.0))
    rewards = iter([1.0, 2.0, -1.0, 5.0])

    def train(trial):
        trial.report(next(rewards), 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return 1.0

    study.optimize(lambda trial: mean_of_trainings(train, trial, 4, 1), n_trials=1)
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[0].intermediate_values == {1: 1.0, 2: 2.0, 3: -1.0}
    assert study.trials[0].user_attrs["trainings"] == [1.0, 1.0]


def test_trainings_per_trial_is_a_number():
    assert take_trainings_per_trial(["--optimize", "--trainings-per-trial", "3"]) == (["--optimize"], 3)
    assert take_trainings_per_trial(["--optimize"]) == (["--optimize"], 1)
    for wrong in (["--trainings-per-trial"], ["--trainings-per-trial", "0"], ["--trainings-per-trial=two"]):
        with pytest.raises(ValueError, match=r"`--trainings-per-trial` is .*: it must be how many trainings"):
            take_trainings_per_trial(wrong)
    with pytest.raises(ValueError, match="`--trainings-per-trial` is 3, but this is no search: pass --optimize too"):
        take_trainings_per_trial(["--env", "CartPole-v1", "--trainings-per-trial", "3"])


def test_trial_0_is_a_trial_and_the_command_line_counts_more(tmp_path):
    study = optuna.create_study(storage=open_storage(str(tmp_path / "study.log")), study_name="s")
    study.optimize(lambda trial: sample_r2vpo_params(trial, 1, 2, {})["gamma"], n_trials=1)
    where = dict(storage=str(tmp_path / "study.log"), study_name="s", trial_id=0, eval_freq=-1)
    model, _ = manager(tmp_path, hyperparams={"n_steps": 17, "batch_size": 17}, **where).setup_experiment()
    assert model.n_steps == 17 and model.n_envs == 2 and model.gamma == study.best_value


def test_ppo_is_searched_for_as_well(tmp_path):
    # One algorithm beside another needs the same care for both
    run = r2vpo(
        "train",
        "--algo",
        "ppo",
        "--optimize",
        "--n-trials",
        "1",
        "-n",
        "64",
        "--seed",
        "2",
        "-params",
        "n_envs:1",
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "clip_range:" in run.stdout and "Trials: 1 complete" in run.stdout


class NanReward(gym.Env):
    """What diverging physics look like."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), float("nan"), self.steps >= 8, False, {}


def test_a_trial_that_is_not_finite_is_pruned_and_the_study_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "NanReward-v0", gym.envs.registration.EnvSpec("NanReward-v0", NanReward))
    study = search(tmp_path, env_id="NanReward-v0", n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    said = capsys.readouterr().out
    assert "not finite in gradient step" in said
    # There is no best one, which is no reason to leave no table
    assert "No trial is complete" in said and list(tmp_path.rglob("report_*.csv"))


# Workers that die


def running_since(study: optuna.Study, ago: timedelta) -> None:
    """A trial whose worker was killed, or is on another machine."""
    study.add_trial(
        FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now() - ago,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
    )


def journal(tmp_path) -> optuna.Study:
    storage = open_storage(str(tmp_path / "study.log"))
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, direction="maximize")


def database(tmp_path) -> optuna.Study:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, direction="maximize")


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_stale_trials_of_a_journal_are_said_and_not_counted(tmp_path, capsys):
    study = journal(tmp_path)
    study.optimize(objective, n_trials=1)
    running_since(study, timedelta(days=1))
    run_trials(study, objective, n_trials=500, max_total_trials=3, n_jobs=1)
    assert states(study) == ["COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"]
    assert "Trial 1 has been running since" in capsys.readouterr().out


def test_a_trial_of_a_journal_is_not_stale_before_it_can_be_told(tmp_path):
    study = journal(tmp_path)
    running_since(study, timedelta(days=1))
    assert studies.stale_in_journal(study) == [], "nothing has finished: nobody knows how long a trial takes"
    study.optimize(objective, n_trials=1)
    running_since(study, timedelta(minutes=1))
    assert [trial.number for trial in studies.stale_in_journal(study)] == [0]
    assert [trial.number for trial in studies.running(study)] == [2]


@pytest.mark.parametrize("ending", [TrialState.COMPLETE, TrialState.FAIL])
def test_the_last_worker_waits_for_the_others(tmp_path, monkeypatch, ending, capsys):
    study = journal(tmp_path)
    running_since(study, timedelta(seconds=1))
    waited = []

    def meanwhile(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            journal(tmp_path).tell(0, 1.0 if ending == TrialState.COMPLETE else None, state=ending)

    monkeypatch.setattr(studies.time, "sleep", meanwhile)
    run_trials(study, objective, n_trials=500, max_total_trials=2, n_jobs=1)
    assert len(waited) == 3 and capsys.readouterr().out.count("Waiting for other workers, which run trial 0") == 1
    # What the other one could not finish is made up for
    expected = ["COMPLETE", "COMPLETE"] if ending == TrialState.COMPLETE else ["FAIL", "COMPLETE", "COMPLETE"]
    assert states(study) == expected


def die_with_a_trial(tmp_path) -> None:
    study = database(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = study.ask()
    objective(trial)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    storage.record_heartbeat(trial._trial_id)
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 day')"))


def test_in_a_database_the_trial_of_a_dead_worker_is_begun_anew(tmp_path):
    die_with_a_trial(tmp_path)
    study = database(tmp_path)
    run_trials(study, objective, n_trials=500, max_total_trials=1, n_jobs=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params


def test_what_kills_every_worker_is_given_up(tmp_path):
    die_with_a_trial(tmp_path)
    for _ in range(study_storage.MAX_RETRIES + 1):
        studies.running(database(tmp_path))
        die_with_a_trial(tmp_path)
    assert set(states(database(tmp_path))) == {"FAIL", "RUNNING"}
    retried = [trial for trial in database(tmp_path).trials if trial.system_attrs.get("failed_trial") == 0]
    assert len(retried) == study_storage.MAX_RETRIES


def test_a_worker_taken_for_dead_goes_on_with_the_next_trial(tmp_path, capsys):
    study = database(tmp_path)

    def asleep_in_the_first(trial: optuna.Trial) -> float:
        if trial.number == 0:
            database(tmp_path).tell(0, state=TrialState.FAIL)
            trial.report(1.0, 1)
        return objective(trial)

    run_trials(study, asleep_in_the_first, n_trials=2, max_total_trials=None, n_jobs=1)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "given to another one" in capsys.readouterr().out


def test_errors_of_the_objective_are_not_taken_for_that(tmp_path):
    def broken(trial):
        raise ValueError("not a number")

    with pytest.raises(ValueError, match="not a number"):
        run_trials(database(tmp_path), broken, n_trials=2, max_total_trials=None, n_jobs=1)


def test_an_outage_does_not_end_the_signs_of_life(tmp_path, monkeypatch):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    monkeypatch.setattr(
        optuna.storages.RDBStorage,
        "record_heartbeat",
        lambda *_: (_ for _ in ()).throw(sqlalchemy.exc.OperationalError("", {}, Exception("server closed the connection"))),
    )
    with pytest.warns(UserWarning, match="trying again in 60 s: server closed the connection"):
        storage.record_heartbeat(0)


# Storages, studies and trials that are not there


@pytest.mark.parametrize(
    ("storage", "error", "says"),
    [
        ("logs/study", ValueError, "must be a journal .a path that ends in .log. or the URL of a database"),
        ("postgrsql://host/db", ValueError, "must be a journal"),
        ("postgresql+psycopg2://me:secret@host/db", ImportError, r"me:\*\*\*@host/db', whose driver is missing .*psycopg2"),
        ("postgresql://me:secret@127.0.0.1:9/db", ConnectionError, r"me:\*\*\*@127.0.0.1:9/db'.*check that the server runs"),
        ("sqlite:////no/such/folder/study.db", ConnectionError, "unable to open database file"),
        (f"{__file__}/study.log", ConnectionError, "cannot be written .*: name another path"),
        ("other.log", ConnectionError, "is no journal of Optuna"),
    ],
)
def test_unusable_storage(storage, error, says, tmp_path, monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.chdir(tmp_path)
    Path("other.log").write_text("what another program wrote\n")
    with pytest.raises(error, match=says) as raised:
        open_storage(storage)
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)
    assert Path("other.log").read_text() == "what another program wrote\n"


def test_without_the_driver_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3_r2vpo\[postgresql\]'"):
        open_storage("postgresql://host/db")


@pytest.mark.parametrize("interval", ["0", "-1", "soon", "1.5"])
def test_heartbeat_must_be_seconds(interval, monkeypatch):
    monkeypatch.setenv("R2VPO_HEARTBEAT", interval)
    with pytest.raises(ValueError, match=f"R2VPO_HEARTBEAT is '{interval}': it must be a number of seconds >= 1"):
        open_storage("sqlite://")


def test_unknown_study_and_trial(tmp_path):
    study = journal(tmp_path)
    with pytest.raises(ValueError, match="`--study-name` is 'other': it must be a study in `--storage`, which has s"):
        find_study(str(tmp_path / "study.log"), "other")
    with pytest.raises(ValueError, match="a study without a complete trial"):
        find_trial(study, None)
    study.optimize(objective, n_trials=3)
    running_since(study, timedelta(seconds=1))
    study.optimize(objective, n_trials=1)
    for trial_id in (3, 7, -1):
        with pytest.raises(ValueError, match=f"`--trial-id` is {trial_id}: .* study 's', which has 0-2, 4$"):
            find_trial(study, trial_id)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--optimize", "--storage", "postgresql://me@127.0.0.1:9/db"], "check that the server runs"),
        (["--trial-id", "0"], "`--trial-id` is 0: `--storage` and `--study-name` must say of which study"),
        (["--trial-id", "0", "--storage", "study.log", "--study-name", "s"], "no hyperparameter 'one_minus_gamma'"),
    ],
)
def test_one_sentence_before_any_training(arguments, says, tmp_path):
    journal(tmp_path).optimize(objective, n_trials=1)
    run = r2vpo("train", "--env", "CartPole-v1", "-f", "logs", *arguments, cwd=tmp_path)
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("r2vpo: ")]
    assert says in line and "Traceback" not in run.stderr
    assert not (tmp_path / "logs").exists()


# Two workers and a real server


@pytest.fixture
def postgresql():
    """A server of its own on a free port: the URL of a database."""
    pytest.importorskip("psycopg")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(installed[-1]) if installed else shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    binaries = Path(found).parent
    # It refuses to run as root
    as_user = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
    # Not pytest's folder, which other users cannot enter
    folder = Path(tempfile.mkdtemp(prefix="r2vpo-postgresql-"))
    (folder / "password").write_text("secret")
    if as_user:
        shutil.chown(folder, "nobody")
        shutil.chown(folder / "password", "nobody")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def pg(name: str, *args: str) -> None:
        command = [*as_user, str(binaries / name), "-D", str(folder / "data"), *args]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    pg("initdb", "-U", "zoo", "--auth=scram-sha-256", f"--pwfile={folder}/password")
    pg("pg_ctl", "-w", "-l", f"{folder}/log", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1", "start")
    yield f"postgresql://zoo:secret@127.0.0.1:{port}/postgres"
    pg("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_wrong_password(postgresql):
    with pytest.raises(ConnectionError, match='password authentication failed for user "zoo"'):
        open_storage(postgresql.replace("secret", "guess"))


@pytest.mark.slow
def test_a_study_in_postgresql_outlives_one_of_its_two_workers(postgresql, tmp_path):
    total = 6
    command = [sys.executable, "-m", "sb3_r2vpo", "train", "--env", "CartPole-v1", "--optimize", "--num-threads", "1"]
    small = ["-n", "8000", "--n-evaluations", "4", "--eval-episodes", "1", "-params", "n_envs:2", "--no-optim-plots"]
    where = ["--storage", postgresql, "--study-name", "shared", "--max-total-trials", str(total)]
    environment = {**os.environ, "R2VPO_HEARTBEAT": "1"}
    # Both at once, on a database without tables
    workers = []
    # Seeds whose trials are of similar length, a second or two
    for name, seed in {"first": "70", "second": "246"}.items():
        with (tmp_path / name).open("w") as output:
            workers.append(
                subprocess.Popen(
                    [*command, *small, *where, "--seed", seed],
                    cwd=tmp_path,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    victim, survivor = workers
    try:
        deadline = time.monotonic() + 400
        study = None
        while study is None and time.monotonic() < deadline:
            time.sleep(0.5)
            study = find_study_if_there(postgresql, "shared")
        assert study is not None, (tmp_path / "first").read_text()
        while victim.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            # Standing still, so that what is seen is so
            victim.send_signal(signal.SIGSTOP)
            before = study.get_trials(states=FINISHED)
            in_the_middle = study.get_trials(states=(TrialState.RUNNING,))
            if before and len(in_the_middle) == 2 and all("one_minus_gamma" in trial.params for trial in in_the_middle):
                victim.kill()
            victim.send_signal(signal.SIGCONT)
        assert victim.returncode == -signal.SIGKILL, (tmp_path / "first").read_text()
        survivor.wait(timeout=600)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    said = (tmp_path / "second").read_text()
    assert survivor.returncode == 0, said

    study = find_study(postgresql, "shared")
    after = study.get_trials(states=FINISHED)
    assert len(after) == total, states(study)
    assert all(trial in after for trial in before), "no finished trial is lost"
    # The trial of the dead one, with the same hyperparameters
    (failed,) = study.get_trials(states=(TrialState.FAIL,))
    (retried,) = [trial for trial in after if trial.system_attrs.get("failed_trial") == failed.number]
    assert retried.params == failed.params
    assert len(study.trials) == total + 1, "none is left running or waiting"
    assert len(list(tmp_path.rglob("report_*.csv"))) == 1


def find_study_if_there(storage: str, name: str) -> optuna.Study | None:
    try:
        return find_study(storage, name)
    except ValueError:
        return None
