"""NaN and inf never reach weights, optimizer state or λ; a runaway policy comes back."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_r2vpo import R2VPO, NonFiniteObservationError, NonFiniteUpdateError
from sb3_r2vpo.rollouts import minibatch_source
from sb3_r2vpo.updater import Metrics, Updater


class BadObservation(gym.Wrapper):
    """Gives a bad observation at one step (0: the reset), and refuses bad actions."""

    def __init__(self, env, at, value):
        super().__init__(env)
        self.at, self.value, self.count = at, value, 0

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return self._spoilt(obs), info

    def step(self, action):
        assert np.isfinite(action).all()
        self.count += 1
        obs, *rest = self.env.step(action)
        return self._spoilt(obs), *rest

    def _spoilt(self, obs):
        obs = np.array(obs)
        if self.count == self.at:
            obs[1] = self.value
        return obs


@pytest.mark.parametrize(("compile", "normalize"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(("at", "value"), [(0, np.nan), (64, np.nan), (70, np.inf)])
def test_a_bad_observation_gets_no_action(compile, normalize, at, value):
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1"), lambda: BadObservation(gym.make("Pendulum-v1"), at, value)])
    model = R2VPO(
        "MlpPolicy",
        VecNormalize(env) if normalize else env,
        n_steps=64,
        batch_size=64,
        n_epochs=1,
        seed=0,
        compile=compile,
    )
    seen = []
    with pytest.raises(
        NonFiniteObservationError, match=rf"`observations` of environment 1, at step {at} .*\({2 * at} timesteps"
    ):
        model.learn(256, callback=lambda locals_, globals_: seen.append(np.isfinite(locals_["new_obs"]).all()) or True)
    assert all(seen) and all(th.isfinite(p).all() for p in model.policy.parameters())


def test_a_bad_entry_of_a_dict_observation_is_named():
    class BadVec(SimpleMultiObsEnv):
        def step(self, action):
            obs, *rest = super().step(action)
            return {**obs, "vec": obs["vec"] * np.nan}, *rest

    with pytest.raises(NonFiniteObservationError, match="Not finite: `vec` of environment 0, at step 1 "):
        R2VPO("MultiInputPolicy", BadVec(), n_steps=64, seed=0).learn(64)


def test_a_huge_coefficient_is_advised_against():
    model = R2VPO("MlpPolicy", "Pendulum-v1", n_steps=64, n_epochs=1, vf_coef=1e38, seed=0)
    with pytest.raises(NonFiniteUpdateError, match=r"Its parts are finite: try a `vf_coef`"):
        model.learn(64)


class BadReward(gym.Wrapper):
    """Gives a reward of NaN at one step."""

    def __init__(self, env, at, reward=float("nan")):
        super().__init__(env)
        self.at, self.reward, self.count = at, reward, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.count += 1
        return obs, self.reward if self.count == self.at else reward, terminated, truncated, info


def state_of(model):
    """Weights, optimizer state and λ, as one list of arrays."""
    optimizer_state = [s[key] for s in model.policy.optimizer.state.values() for key in sorted(s)]
    return [x.detach().clone().numpy() for x in [*model.policy.parameters(), *optimizer_state, model.dual.value]]


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop])
@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_bad_reward_stops_training_before_it_spreads(optimizer, reward):
    env = BadReward(gym.make("Pendulum-v1"), at=64 + 32, reward=reward)
    model = R2VPO(
        "MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, policy_kwargs=dict(optimizer_class=optimizer)
    )
    states = []
    train = model.train

    def keep_state_and_train():
        states.append(state_of(model))
        train()

    model.train = keep_state_and_train
    message = r"value loss and gradient norm not finite in gradient step 1 of 2 after 128 timesteps \(2 such steps\)"
    with pytest.raises(NonFiniteUpdateError, match=message) as error:
        model.learn(256)
    assert "Not finite in the rollout: rewards, returns" in str(error.value)
    assert isinstance(error.value, ValueError)
    assert len(states) == 2
    for before, after in zip(states[-1], state_of(model), strict=True):
        assert np.isfinite(after).all()
        np.testing.assert_array_equal(before, after)


def test_only_the_bad_minibatch_is_skipped():
    model = R2VPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=16, n_epochs=1, seed=0)
    model.learn(64)
    before = state_of(model)
    model.rollout_buffer.advantages[5] = np.nan
    with pytest.raises(NonFiniteUpdateError, match=r"\(1 such steps\)"):
        model.train()
    after = state_of(model)
    assert all(np.isfinite(x).all() for x in after)
    assert any((x != y).any() for x, y in zip(before, after, strict=True))


class MissingValues(gym.ObservationWrapper):
    """A sensor that is not there."""

    def observation(self, observation):
        return np.array([*observation[:-1], np.nan], dtype=np.float32)


class WithoutMissingValues(FlattenExtractor):
    def forward(self, observations):
        return th.nan_to_num(super().forward(observations))


def test_nan_that_the_features_extractor_expects_is_no_error():
    arguments = dict(n_steps=64, seed=0, policy_kwargs=dict(features_extractor_class=WithoutMissingValues))
    model = R2VPO("MlpPolicy", MissingValues(gym.make("Pendulum-v1")), **arguments).learn(128)
    assert model.num_timesteps == 128 and all(th.isfinite(p).all() for p in model.policy.parameters())
    with pytest.raises(NonFiniteObservationError, match="`observations` of environment 0, at step 0"):
        R2VPO("MlpPolicy", MissingValues(gym.make("Pendulum-v1")), n_steps=64).learn(64)


@pytest.mark.parametrize("settings", [dict(norm_obs=False), dict(training=False), dict(norm_obs=True)])
def test_expected_nan_spoils_statistics_of_observations_alone(settings):
    env = VecNormalize(DummyVecEnv([lambda: MissingValues(gym.make("Pendulum-v1"))]), **settings)
    arguments = dict(n_steps=64, seed=0, policy_kwargs=dict(features_extractor_class=WithoutMissingValues))
    model = R2VPO("MlpPolicy", env, **arguments)
    if settings == dict(norm_obs=True):
        with pytest.raises(NonFiniteObservationError, match="`observations` of environment 0, at step 0"):
            model.learn(64)
    else:
        assert model.learn(64).num_timesteps == 64


@pytest.fixture
def unchecked_distributions():
    """As under `python -O`: otherwise torch refuses NaN observations before we see them."""
    th.distributions.Distribution.set_default_validate_args(False)
    yield
    th.distributions.Distribution.set_default_validate_args(True)


def test_dict_observations_are_named(unchecked_distributions):
    model = R2VPO("MultiInputPolicy", SimpleMultiObsEnv(), n_steps=64, seed=0)
    model.learn(64)
    model.rollout_buffer.observations["vec"][3] = np.nan
    with pytest.raises(NonFiniteUpdateError, match=r"Not finite in the rollout: vec\."):
        model.train()


def test_outliers_that_would_overflow_are_pulled_back():
    """The square of e^60 is no float32 any more; a clamped ratio would have no gradient."""
    model = R2VPO("MlpPolicy", "Pendulum-v1", n_steps=256, var_coef=2.0, seed=0, vf_coef=0.0)
    model.learn(256)
    samples = next(minibatch_source(model.rollout_buffer)(256))
    outliers = th.arange(256) < 4
    samples = samples._replace(old_log_prob=samples.old_log_prob - 60.0 * outliers)
    update = Updater(model.policy, model.dual, model._current_coefficients(target_var=0.02))
    first = Metrics(*update(samples))
    for _ in range(50):
        last = Metrics(*update(samples))
    assert all(th.isfinite(metric) for metric in last)
    assert last.ratio_variance < 0.99 * first.ratio_variance


def test_a_run_driven_to_huge_ratios_stays_finite_and_comes_back():
    model = R2VPO(
        "MlpPolicy",
        "Pendulum-v1",
        n_steps=256,
        learning_rate=0.01,
        target_var=50.0,
        ratio_penalty="variance",
        var_coef="auto_0.001",
        var_coef_bounds=(1e-3, 100.0),
        vf_coef=1e-3,
        seed=0,
    )
    model.learn(1536)
    assert model.logger.name_to_value["train/ratio_variance"] > 1.0, "not driven far enough to test anything"
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    # The user goes on with a sane target and learning rate
    model.target_var = FloatSchedule(0.02)
    model.lr_schedule = FloatSchedule(3e-4)
    model.learn(2048, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/ratio_variance"] < 0.1
    assert model.dual.value > 0.01
