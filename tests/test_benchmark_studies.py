"""What robustness and the study of the dual variable measure is what they say."""

import dual_figures
import failure_map
import numpy as np
import probe
import pytest
import robustness
import torch as th
from dual_dynamics import KNOBS, of_the_study
from gymnasium import spaces
from peers import BrakedUpdater, ClippedUpdater
from protocol import Run, configuration
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_r2vpo import R2VPO
from sb3_r2vpo.dual import DualVariable
from sb3_r2vpo.updater import Coefficients, Updater

PLACES = ("before\n<!-- {0} -->\nold\n<!-- /{0} -->\n").format


@pytest.fixture
def rollout():
    """Samples whose policy has moved since."""
    th.manual_seed(0)
    box = spaces.Box(-1.0, 1.0, (3,))
    policy = ActorCriticPolicy(box, box, lambda _: 1e-3, net_arch=[8])
    observations = th.randn(256, 3)
    actions, values, log_prob = policy(observations)
    old_log_prob = log_prob.detach() + 0.3 * th.randn(256)
    return policy, RolloutBufferSamples(
        observations, actions.detach(), values.detach().flatten(), old_log_prob, th.randn(256), th.randn(256)
    )


def weights_of(make, rollout, var_coef, **kwargs):
    policy, samples = rollout
    coefficients = Coefficients(target_var=0.02, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5)
    dual = DualVariable(var_coef, False, 0.02, (0.1, 100.0))
    log_ratio, advantages, weight = probe.gradient_weights(make(policy, dual, coefficients, **kwargs), samples)
    assert all(p.grad is None for p in policy.parameters())
    return np.exp(log_ratio), advantages, weight


def test_gradient_weight_of_ppo(rollout):
    ratio, advantages, weight = weights_of(ClippedUpdater, rollout, 0.0, clip_range=0.2)
    cut = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    assert 0.05 < cut.mean() < 0.95
    np.testing.assert_allclose(weight, np.where(cut, 0.0, ratio * advantages), rtol=1e-4, atol=1e-5)


def test_gradient_weight_of_spo(rollout):
    ratio, advantages, weight = weights_of(BrakedUpdater, rollout, 0.0, clip_range=0.2)
    expected = ratio * (advantages - np.abs(advantages) / 0.2 * (ratio - 1))
    np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-4)


def test_gradient_weight_of_r2vpo(rollout):
    ratio, advantages, weight = weights_of(Updater, rollout, 1.5)
    above = ratio > 1
    expected = ratio * (advantages - 3.0 * (ratio - 1))
    np.testing.assert_allclose(weight[above], expected[above], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kwargs, brakes", [(dict(var_coef=0.0), False), (dict(var_coef=5.0), True)])
def test_a_probe_changes_nothing(kwargs, brakes):
    seen = probe.Probe(n_updates=3, n_epochs=4)
    settings = dict(n_steps=64, batch_size=16, n_epochs=4, learning_rate=1e-2, seed=0, device="cpu", compile=False, **kwargs)
    plain, looked_at = (make("MlpPolicy", "Pendulum-v1", **settings) for make in (R2VPO, probe.probed(R2VPO, seen)))
    for model in (plain, looked_at):
        model.set_random_seed(0)
        model.learn(3 * 64)
    th.testing.assert_close(plain.policy.state_dict(), looked_at.policy.state_dict(), rtol=0, atol=0)
    assert seen.ratios.sum() == 3 * 4 * 64
    record = seen.record()
    assert np.sum(record["samples"]) == pytest.approx(1.0, abs=1e-2)
    kept = np.array(record["kept"], dtype=float)
    assert (np.nanmin(kept) < 0.99) == brakes, "only a penalty brakes"


def test_swing_and_feasibility():
    trend = 2.0 ** np.linspace(0, 3, 61)
    assert dual_figures.swing_of(trend) == pytest.approx(0.0, abs=1e-9)
    up_and_down = trend * 1.1 ** (np.arange(61) % 2)
    assert dual_figures.swing_of(up_and_down) == pytest.approx(0.1, abs=0.01)
    assert dual_figures.feasible_from(np.array([3.0, 0.5, 0.05, 2.0])) == 0.5
    assert dual_figures.feasible_from(np.array([3.0, 0.5])) is None


HELD = [("large_staggered", 0), ("large", 0), ("large_staggered", 1)]


def test_held():
    up_and_down = np.tile([1.0, 2.0], 30)
    assert dual_figures.correlation_with_later(up_and_down, 1) == pytest.approx(-1.0)
    assert dual_figures.correlation_with_later(up_and_down, 4) == pytest.approx(1.0)
    variance = {"var_coef": [1.0] * 60, "ratio_variance_last_epoch": (0.02 * up_and_down).tolist(), "target_var": [0.02] * 60}
    records = [{**record_of("R2VPO", {}, **variance), "regime": regime, "seed": seed} for regime, seed in HELD]
    rows = dual_figures.held_table(records).splitlines()[2:]
    values = "1.51 | 51% | 2.0 | -1.00 | +1.00 | +1.00 |"
    assert rows == [f"| CheetahRun, in step (1 seeds) | {values}", f"| CheetahRun, staggered (2 seeds) | {values}"]


def test_plateau():
    returns = np.array([[100.0, 91.0], [np.nan, 50.0]])
    assert robustness.on_plateau(returns, 100.0) == pytest.approx(2 / 3)
    assert robustness.on_plateau(returns, 200.0) == 0.0


def record_of(algorithm, changes, final=500.0, task="CheetahRun", **kwargs):
    run = Run(task, "small", algorithm, 0, changes)
    return {
        **run._asdict(),
        "configuration": configuration(run),
        "curve": [(1000, final)],
        "deterministic": [final] * 10,
        **kwargs,
    }


def test_robustness_report(tmp_path, monkeypatch):
    """Of a grid that is not complete."""
    (tmp_path / "learning.md").write_text(PLACES("robustness"))
    monkeypatch.setattr(robustness, "DOCS", tmp_path)
    monkeypatch.setattr("figures.IMAGES", tmp_path)
    records = [
        record_of(a, {"learning_rate": rate, "n_epochs": n}, final=600.0 if a == "R2VPO" else 6e5 * rate)
        for a in robustness.ALGORITHMS
        for rate in robustness.LEARNING_RATES[:2]
        for n in robustness.EPOCHS
    ]
    robustness.write_report(records)
    text = (tmp_path / "learning.md").read_text()
    assert "| share within 10 % of its own best, training policy | 50% (50%) | 100% (100%) |" in text
    assert "| lowest, as a share of the best of both, training policy | 30% (30%) | 100% (100%) |" in text
    assert (tmp_path / "robustness.png").exists()


def test_remedies_are_compared_on_the_same_seeds():
    benchmark = [
        {**record_of(a, {}, final=final + 10 * seed), "seed": seed}
        for a, final in {"PPO 0.2": 100.0, "R2VPO": 200.0}.items()
        for seed in range(3)
    ]
    tried = [{**record_of("R2VPO", {"ent_coef": 0.0}, final=300.0), "seed": seed} for seed in (1, 2)]
    assert "| CheetahRun (2 seeds) | 115 / 115 | 215 / 215 | 300 / 300 |" in failure_map.remedies_table(benchmark, tried)
    with pytest.raises(SystemExit, match="no results"):
        failure_map.remedies_table(benchmark, [])


def test_dual_report(tmp_path, monkeypatch):
    """Each part is written when it has results, and not before."""
    document = tmp_path / "dual.md"
    document.write_text("".join(map(PLACES, ("starts", "knobs", "ratios"))))
    monkeypatch.setattr(dual_figures, "REPORT", document)
    monkeypatch.setattr("figures.IMAGES", tmp_path)
    turned = [
        record_of(a, {knob: value}, final=100 * i)
        for a, (knob, values) in KNOBS.items()
        for i, value in enumerate(values)
        if a != "SPO 0.2"
    ]
    dual_figures.write_report(turned, [], KNOBS)
    assert "| R2VPO fixed, var_coef 0.3 | 100 |" in document.read_text() and "SPO" not in document.read_text()
    assert document.read_text().count("\nold\n") == 2

    followed = {"var_coef": [2.0, 3.0] * 4, "ratio_variance_last_epoch": [0.1] * 4 + [0.01] * 4, "entropy": [1.0] * 8}
    started = [record_of("R2VPO", {"var_coef": f"auto_{start}"}, **followed, target_var=[0.02] * 8) for start in (2.0, 8.0)]
    seen = probe.Probe(n_updates=20, n_epochs=4)
    seen.ratios[:] = 1
    seen.samples[:] = seen.free[:] = 1
    dual_figures.write_report(turned + started, [record_of("R2VPO", {}, **seen.record())], KNOBS)
    text = document.read_text()
    assert "| small CheetahRun seed 0 from 8 | 3 | 50% | 2.00 |" in text and "\nold\n" not in text
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"dual_starts.png", "dual_knobs.png", "dual_ratios.png", "dual_kept.png"}
    assert all(f"images/{picture}" in text for picture in pictures)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("PPO 0.3", ("PPO 0.2", {"clip_range": 0.3})),
        ("SPO 0.8", ("SPO 0.2", {"clip_range": 0.8})),
        ("R2VPO fixed 0.3", ("R2VPO fixed 1", {"var_coef": 0.3})),
        ("TRPO", ("TRPO", {"target_kl": 0.003})),
        ("R2VPO", ("R2VPO", {"var_coef": "auto_1.0"})),
    ],
)
def test_runs_of_the_benchmark_are_points_of_the_study(algorithm, expected):
    point = of_the_study(record_of(algorithm, {}, final=100.0))
    assert (point["algorithm"], point["changes"]) == expected


def test_knobs_are_arguments():
    for algorithm, (knob, values) in KNOBS.items():
        assert configuration(Run("CheetahRun", "small", algorithm, 0, {knob: values[0]}))[knob] == values[0]
