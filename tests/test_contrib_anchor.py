"""Without their penalty MaskableR2VPO and RecurrentR2VPO are sb3-contrib's MaskablePPO and RecurrentPPO without their clip."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv

from sb3_r2vpo import MaskableR2VPO, RecurrentR2VPO


class Masked(gym.Wrapper):
    """Every other action is invalid at every other step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        return self.env.step(action)

    def action_masks(self):
        return (np.arange(self.action_space.n) + self.steps) % 2 == 0


class FirstPart(gym.ActionWrapper):
    """Actions have several parts, of which the first counts."""

    def __init__(self, env, action_space):
        super().__init__(env)
        self.action_space = action_space

    def action(self, action):
        return int(action[0])


def small_images():
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)


SHARED = dict(n_steps=64, batch_size=48, n_epochs=3, learning_rate=1e-3, seed=5, device="cpu")
LSTM = dict(lstm_hidden_size=8, net_arch=[8])
CASES = {
    "discrete": ("Maskable", "MlpPolicy", lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10), {}),
    "multi_discrete": ("Maskable", "MlpPolicy", lambda: InvalidActionEnvMultiDiscrete(dims=[4, 5], n_invalid_actions=4), {}),
    "multi_binary": ("Maskable", "MlpPolicy", lambda: InvalidActionEnvMultiBinary(dims=5, n_invalid_actions=3), {}),
    "dict": ("Maskable", "MultiInputPolicy", lambda: Masked(SimpleMultiObsEnv(random_start=False)), {}),
    "image": ("Maskable", "CnnPolicy", lambda: Masked(small_images()), dict(n_epochs=1)),
    "maskable_clip_range_vf": (
        "Maskable",
        "MlpPolicy",
        lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10),
        dict(clip_range_vf=0.2, ent_coef=0.01, normalize_advantage=False, target_kl=0.01),
    ),
    "own_critic_lstm": ("Recurrent", "MlpLstmPolicy", lambda: gym.make("CartPole-v1"), dict(policy_kwargs=LSTM)),
    "no_critic_lstm": (
        "Recurrent",
        "MlpLstmPolicy",
        lambda: gym.make("CartPole-v1"),
        dict(policy_kwargs=dict(enable_critic_lstm=False, **LSTM), clip_range_vf=0.2, ent_coef=0.01, target_kl=0.01),
    ),
    "shared_lstm": (
        "Recurrent",
        "MlpLstmPolicy",
        lambda: gym.make("CartPole-v1"),
        dict(policy_kwargs=dict(shared_lstm=True, enable_critic_lstm=False, n_lstm_layers=2, **LSTM)),
    ),
    "box": (
        "Recurrent",
        "MlpLstmPolicy",
        lambda: make_vec_env("Pendulum-v1", n_envs=2),
        dict(policy_kwargs=LSTM, normalize_advantage=False, use_sde=True, sde_sample_freq=4),
    ),
    # Not multi-binary: RecurrentPPO fails with it
    "recurrent_multi_discrete": (
        "Recurrent",
        "MlpLstmPolicy",
        lambda: FirstPart(gym.make("CartPole-v1"), spaces.MultiDiscrete([2, 3])),
        dict(policy_kwargs=LSTM),
    ),
    "recurrent_dict": (
        "Recurrent",
        "MultiInputLstmPolicy",
        lambda: SimpleMultiObsEnv(random_start=False),
        dict(policy_kwargs=LSTM),
    ),
    "recurrent_image": ("Recurrent", "CnnLstmPolicy", small_images, dict(n_epochs=1, policy_kwargs=LSTM)),
}


def weights_after(algorithm, policy, make_env, **kwargs):
    np.random.seed(0)
    env = make_env()
    env.observation_space.seed(0)
    model = algorithm(policy, env, **{**SHARED, **kwargs})
    model.learn(4 * SHARED["n_steps"])
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()]), model


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_of_ppo_without_clip(case):
    kind, policy, make_env, kwargs = CASES[case]
    theirs, ours = {"Maskable": (MaskablePPO, MaskableR2VPO), "Recurrent": (RecurrentPPO, RecurrentR2VPO)}[kind]
    ppo_weights, ppo = weights_after(theirs, policy, make_env, clip_range=1e9, **kwargs)
    weights, model = weights_after(ours, policy, make_env, var_coef=0.0, **kwargs)
    np.testing.assert_allclose(weights, ppo_weights, rtol=1e-3, atol=1e-4)
    assert model._n_updates == ppo._n_updates
