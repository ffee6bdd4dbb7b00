"""Rollouts whose rewards say nothing: told apart, and stepped on less."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_r2vpo import R2VPO
from sb3_r2vpo.quiet import PATIENCE, QUIET, RewardVariation

NOT_DONE = np.zeros(4, dtype=bool)


def quiet(variation, rewards, dones=NOT_DONE, infos=({},) * 4):
    """Of a rollout of three steps, the last of which ends so."""
    variation.begin()
    for step in np.reshape(rewards, (3, 4)):
        variation.add(step, NOT_DONE, [{}] * 4)
    variation.add(np.full(4, np.mean(rewards)), dones, list(infos))
    return variation.observe()


def rewards_of(std, seed=0):
    rewards = np.random.default_rng(seed).normal(size=12)
    return 5.0 + std * (rewards - rewards.mean()) / rewards.std()


def test_rewards_that_are_all_alike_are_quiet():
    variation = RewardVariation()
    assert quiet(variation, np.zeros(12)) and quiet(variation, np.full(12, 3.7)), "they have never varied"
    assert not quiet(variation, rewards_of(1e-3)), "nothing has varied more so far"
    assert not quiet(variation, rewards_of(1.0))
    assert quiet(variation, np.zeros(12)) and quiet(variation, np.full(12, 3.7))
    assert quiet(variation, rewards_of(0.1 * QUIET)) and not quiet(variation, rewards_of(2 * QUIET))
    # The mean of the variances of all rollouts, a fourth of each being steps at the mean
    expected = 0.75 * (1e-6 + 1.0 + (0.1 * QUIET) ** 2 + (2 * QUIET) ** 2)
    assert variation.squares.item() == pytest.approx(expected, rel=1e-4) and variation.n_rollouts == 8


def test_patience_ends_where_nothing_has_ever_varied():
    variation = RewardVariation()
    assert [quiet(variation, np.ones(12)) for _ in range(PATIENCE + 2)] == [True] * PATIENCE + [False] * 2
    assert not quiet(variation, rewards_of(1.0))
    assert all(quiet(variation, np.ones(12)) for _ in range(PATIENCE + 2))


def test_the_end_of_an_episode_is_news_and_a_time_limit_is_not():
    variation = RewardVariation()
    assert not quiet(variation, rewards_of(1.0))
    done = np.array([False, True, False, False])
    assert not quiet(variation, np.ones(12), done)
    assert quiet(variation, np.ones(12), done, [{}, {"TimeLimit.truncated": True}, {}, {}])


def test_what_is_not_finite_or_not_there_does_not_count():
    variation = RewardVariation()
    assert not quiet(variation, np.full(12, np.nan))
    variation.begin()
    assert not variation.observe()
    assert variation.n_rollouts == 0 and quiet(variation, np.zeros(12))


def test_what_other_processes_have_seen_counts():
    variation = RewardVariation()
    variation.begin()
    variation.add(np.ones(4), NOT_DONE, [{}] * 4)
    # Another one had rewards of three
    assert not variation.observe(lambda totals: totals + np.array([4.0, 12.0, 36.0, 0.0]))
    assert variation.squares.item() == pytest.approx(1.0)


class Rewards(gym.Env):
    """Rewards that do not depend on the action, of a size that changes with the number of steps taken."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, noise):
        self.noise = noise
        self.n_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        reward = self.noise(self.n_steps) * float(self.np_random.normal())
        self.n_steps += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), reward, False, False, {}


def first_rollout_only(n_steps):
    return float(n_steps < 64)


def always(n_steps):
    return 1.0


def never(n_steps):
    return 0.0


def trained(noise, n_rollouts=10, **kwargs):
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Rewards(noise), 50) for _ in range(4)])
    model = R2VPO("MlpPolicy", VecNormalize(env), n_steps=64, learning_rate=1e-3, seed=0, device="cpu", **kwargs)
    return model.learn(n_rollouts * 64 * 4)


def test_where_rewards_have_ceased_the_policy_stays_where_it_is():
    held, moved = trained(first_rollout_only), trained(first_rollout_only, quiet_scale=1.0)
    observations = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    before, *after = (
        model.predict(observations, deterministic=True)[0] for model in (trained(first_rollout_only, 1), held, moved)
    )
    ways = [np.square(actions - before).mean() ** 0.5 for actions in after]
    assert held.logger.name_to_value["train/quiet"] == 1
    assert ways[0] < 0.5 * ways[1], "δ after rollouts without a reward is spent on noise"
    # λ need not move for it: the bound is smaller by the square
    variances = [model.logger.name_to_value["train/target_var"] for model in (held, moved)]
    assert variances[0] == pytest.approx(0.09 * variances[1])
    assert held.dual.value.item() == pytest.approx(moved.dual.value.item(), rel=0.5)


@pytest.mark.parametrize(
    "noise, kwargs, differs",
    [
        (first_rollout_only, dict(), True),
        (always, dict(), False),
        (never, dict(), True),
        (first_rollout_only, dict(normalize_advantage=False), False),
        (first_rollout_only, dict(var_coef=1.0), False),
    ],
)
def test_it_makes_a_difference_after_quiet_rollouts_and_with_a_learned_coefficient(noise, kwargs, differs):
    one, other = (trained(noise, 3, quiet_scale=scale, **kwargs).policy.parameters_to_vector() for scale in (0.1, 1.0))
    assert np.array_equal(one, other) != differs


def test_it_is_saved_with_the_model(tmp_path):
    model = trained(always, 2)
    model.save(tmp_path / "model")
    loaded = R2VPO.load(tmp_path / "model", device="cpu")
    assert th.equal(loaded.reward_variation.squares, model.reward_variation.squares)
    assert loaded.reward_variation.n_rollouts == 2
