"""On a GPU: the captured step is the plain one, the plain one is the CPU's, and what surrounds them works there too."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3.common.vec_env import VecNormalize
from test_backends import CASES, Twins, float64, make_model, run_case, tolerance, weights  # noqa: F401 (the fixture)

from sb3_r2vpo import (
    R2VPO,
    MaskableR2VPO,
    NonFiniteUpdateError,
    RatioHistogramCallback,
    RecurrentR2VPO,
    make_envpool_vec_env,
)
from sb3_r2vpo.rollouts import shuffled_minibatches

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("case", CASES)
def test_captured_step_is_the_plain_one(float64, case):  # noqa: F811
    run_case(case, device="cuda")


def test_a_bad_minibatch_changes_nothing(float64):  # noqa: F811
    twins = run_case("box", device="cuda")
    before = [copy.deepcopy(twins.state(i)) for i in range(2)]
    for name in ("advantages", "returns", "old_log_prob"):
        bad = twins.samples._replace(**{name: th.full_like(getattr(twins.samples, name), th.nan)})
        twins.new_rollout()
        twins.epoch(bad)
        for i in range(2):
            th.testing.assert_close(twins.state(i), before[i], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["box", "discrete", "dict"])
def test_the_step_is_that_of_the_cpu(float64, case):  # noqa: F811
    on_cpu, on_gpu = Twins(case), Twins(case, device="cuda")
    on_gpu.policies[0].load_state_dict(on_cpu.policies[0].state_dict())
    for batch in shuffled_minibatches(on_cpu.samples, 32):
        moved = [{key: x.cuda() for key, x in part.items()} if isinstance(part, dict) else part.cuda() for part in batch]
        metrics = on_cpu.updaters[0](batch), on_gpu.updaters[0](type(batch)(*moved)).cpu()
        th.testing.assert_close(*metrics, **tolerance(metrics[0]))
    gpu_weights = {name: x.cpu() for name, x in on_gpu.policies[0].state_dict().items()}
    th.testing.assert_close(on_cpu.policies[0].state_dict(), gpu_weights, **tolerance(on_cpu.duals[0].value))


def test_learn():
    """Whole rollouts: schedules, early stopping, the signal and λ."""
    settings = dict(learning_rate=lambda x: 3e-2 * x, target_var=lambda x: 0.1 * x + 0.01, target_kl=0.003)
    plain, captured = (make_model(compile, device="cuda", **settings) for compile in (False, True))
    for model in (plain, captured):
        model.set_random_seed(0)
        model.learn(64 * 4)
    assert len(captured._programs) == 1 and not captured._programs.failed
    th.testing.assert_close(weights(plain), weights(captured), rtol=1e-3, atol=1e-4)
    th.testing.assert_close(plain.logger.name_to_value, captured.logger.name_to_value, rtol=1e-2, atol=1e-3)


def test_a_bad_reward_stops_a_captured_training():
    class BadReward(gym.RewardWrapper):
        def reward(self, reward):
            return np.nan

    model = make_model(True, device="cuda")
    model.learn(128)
    before = copy.deepcopy(model.policy.state_dict())
    model.set_env(BadReward(gym.make("Pendulum-v1")))
    with pytest.raises(NonFiniteUpdateError):
        model.learn(64, reset_num_timesteps=False)
    th.testing.assert_close(model.policy.state_dict(), before, rtol=0, atol=0)


def test_capturing_each_rollout_keeps_no_memory():
    model = make_model(True, device="cuda")
    model.learn(64 * 3)
    before = th.cuda.memory_reserved()
    model.learn(64 * 30, reset_num_timesteps=False)
    assert th.cuda.memory_reserved() <= before


def test_save_and_load_change_devices(recwarn, tmp_path):
    model = make_model(True, device="cuda").learn(256)
    assert not [w for w in recwarn if "on the GPU" in str(w.message)]
    assert model.dual.value.device.type == "cuda"
    model.save(tmp_path / "model")
    for device in ("cuda", "cpu"):
        loaded = R2VPO.load(tmp_path / "model", env=model.env, device=device)
        assert loaded.policy.device.type == loaded.dual.value.device.type == device
        th.testing.assert_close(weights(loaded), weights(model), rtol=0, atol=0, check_device=False)
        loaded.learn(128)


@pytest.mark.parametrize("compile", [False, True])
def test_many_environments_with_a_callback(compile):
    env = VecNormalize(make_envpool_vec_env("CheetahRun-v1", 16, seed=0))
    model = R2VPO("MlpPolicy", env, n_steps=32, batch_size=128, seed=0, device="cuda", compile=compile)
    model.learn(16 * 32 * 4, callback=RatioHistogramCallback())
    assert not model._programs.failed
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


def test_masks():
    model = MaskableR2VPO(
        "MlpPolicy", InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10), n_steps=64, seed=0, device="cuda", compile=True
    )
    model.learn(256)
    assert not model._programs.failed


def test_memory_of_the_policy():
    RecurrentR2VPO("MlpLstmPolicy", "Pendulum-v1", n_steps=64, batch_size=32, seed=0, device="cuda").learn(256)
