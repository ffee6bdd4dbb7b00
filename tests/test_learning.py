"""R2VPO learns."""

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_r2vpo import R2VPO


def mean_return(model, env, n_eval_episodes=20) -> float:
    return evaluate_policy(model, env, n_eval_episodes=n_eval_episodes)[0]


@pytest.mark.parametrize("var_coef", ["auto", 2.0])
def test_cartpole_is_solved(var_coef):
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    # RL Zoo's, with a learning rate that falls: at a constant one the policy can fall again after it has been solved
    settings = dict(
        n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, learning_rate=lambda left: 1e-3 * left
    )
    model = R2VPO("MlpPolicy", env, var_coef=var_coef, seed=0, device="cpu", **settings).learn(60_000)
    # Gymnasium's own threshold
    assert mean_return(model, make_vec_env("CartPole-v1", seed=1)) >= 475


@pytest.mark.slow
def test_pendulum_is_learned():
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    settings = dict(n_steps=1024, gamma=0.9, learning_rate=1e-3, use_sde=True, sde_sample_freq=4)
    model = R2VPO("MlpPolicy", env, seed=0, device="cpu", **settings).learn(100_000)
    # A random policy has about -1200
    assert mean_return(model, make_vec_env("Pendulum-v1", seed=1)) > -400


@pytest.mark.slow
def test_half_cheetah_improves():
    pytest.importorskip("mujoco")
    env = VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=8, seed=0))
    model = R2VPO("MlpPolicy", env, n_steps=256, seed=0, device="cpu").learn(300_000)
    # A random policy has about -280
    assert np.mean([info["r"] for info in model.ep_info_buffer]) > 300
