"""The correlation of the last step with advantages that it has not seen."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_r2vpo import R2VPO
from sb3_r2vpo.rollouts import minibatch_source, whole_rollout
from sb3_r2vpo.signal import NEWEST, StepSignal, flat_weights
from sb3_r2vpo.updater import evaluate_actions


@pytest.fixture(scope="module")
def model():
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    return R2VPO("MlpPolicy", env, n_steps=64, n_epochs=2, seed=0, device="cpu").learn(64 * 4)


def moved(policy, scale):
    """The policy after a step in a random direction."""
    policy = copy.deepcopy(policy)
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for p in policy.parameters():
            p += scale * th.randn(p.shape, generator=generator)
    return policy


def log_ratio_of(policy, before, batch):
    with th.no_grad():
        return (evaluate_actions(policy, batch)[1] - evaluate_actions(before, batch)[1]).numpy()


@pytest.fixture
def rollout(model):
    """A policy, the one before it, and samples as the first would have collected."""
    before, policy = copy.deepcopy(model.policy), moved(model.policy, 0.01)
    batch = whole_rollout(model.rollout_buffer)
    with th.no_grad():
        batch = batch._replace(old_log_prob=evaluate_actions(policy, batch)[1])
    return before, policy, batch


def test_it_is_the_correlation_of_log_ratio_and_advantages(rollout):
    before, policy, batch = rollout
    signal, weights = StepSignal(before), flat_weights(policy)
    halves = [type(batch)(*(x[i::2] for x in batch)) for i in range(2)]
    expected = np.corrcoef(log_ratio_of(policy, before, batch), batch.advantages.numpy())[0, 1]
    assert signal.observe(policy, halves) == pytest.approx(expected, abs=1e-4)
    # and leaves the policy as it was
    th.testing.assert_close(flat_weights(policy), weights, rtol=0, atol=0)
    th.testing.assert_close(signal.previous_weights, weights, rtol=0, atol=0)


def test_a_step_towards_good_actions_is_positive_and_one_away_from_them_negative(rollout):
    before, policy, batch = rollout
    step = th.as_tensor(log_ratio_of(policy, before, batch))
    noise = th.randn(len(step), generator=th.Generator().manual_seed(1)) * step.std()
    for sign in (1.0, -1.0):
        measured = StepSignal(before).observe(policy, [batch._replace(advantages=sign * step + noise)])
        assert measured == pytest.approx(sign / 2**0.5, abs=0.1)


def test_it_is_a_running_mean_and_skips_what_has_no_correlation(rollout):
    before, policy, batch = rollout
    signal = StepSignal(policy)
    # No step yet
    assert signal.observe(policy, [batch]) == 0.0
    signal = StepSignal(before)
    first = signal.observe(policy, [batch])
    signal.previous_weights.copy_(flat_weights(before))
    reversed_ = signal.observe(policy, [batch._replace(advantages=-batch.advantages)])
    assert reversed_ == pytest.approx((1 - NEWEST) * first - NEWEST * first, abs=1e-5)
    for advantages in (th.full_like(batch.advantages, th.nan), th.ones_like(batch.advantages)):
        signal.previous_weights.copy_(flat_weights(before))
        assert signal.observe(policy, [batch._replace(advantages=advantages)]) == reversed_


def test_noise_has_no_signal():
    """Rewards that no action changes: steps fit them, and the next rollout tells."""
    env = make_vec_env("Pendulum-v1", n_envs=16, seed=0)
    model = R2VPO("MlpPolicy", env, n_steps=64, batch_size=256, n_epochs=20, learning_rate=1e-3, seed=0, device="cpu")
    correlations = []
    for k in range(6):
        model.learn(64 * 16, reset_num_timesteps=k == 0)
        buffer = model.rollout_buffer
        buffer.advantages[:] = np.random.default_rng(k).normal(size=buffer.advantages.shape)
        model.signal.correlation.fill_(th.nan)
        correlations.append(model.signal.observe(model.policy, minibatch_source(buffer)(1024)))
    # 1/√N = 0.03 each
    assert np.abs(correlations).max() < 0.12


def test_it_continues_after_loading(tmp_path):
    def make(steps):
        env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
        return R2VPO("MlpPolicy", env, n_steps=64, n_epochs=4, learning_rate=1e-2, seed=0, device="cpu").learn(steps)

    model = make(64 * 4 * 3)
    model.save(tmp_path / "model")
    loaded = R2VPO.load(tmp_path / "model")
    assert th.equal(loaded.signal.previous_weights, model.signal.previous_weights)
    assert loaded.signal.correlation == model.signal.correlation != 0.0


def test_foreign_weights_are_no_step(model):
    other = moved(model.policy, 0.1)
    fresh = R2VPO("MlpPolicy", "Pendulum-v1", device="cpu")
    fresh.set_parameters({"policy": other.state_dict()}, exact_match=False)
    assert th.equal(fresh.signal.previous_weights, flat_weights(other))


def test_exchanged_modules_are_no_step():
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    model = R2VPO("MlpPolicy", env, n_steps=64, n_epochs=2, seed=0, device="cpu").learn(64 * 4)
    model.policy.mlp_extractor.policy_net = th.nn.Sequential(th.nn.Linear(3, 64), th.nn.Tanh())
    model.learn(64 * 4, reset_num_timesteps=False)
    assert len(model.signal.previous_weights) == len(flat_weights(model.policy))
