"""A PPO script with one word changed."""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_r2vpo import R2VPO

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=60_000)
args = parser.parse_args()

env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
model = R2VPO("MlpPolicy", env, n_steps=128, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
model.learn(args.timesteps, progress_bar=True)
model.save("r2vpo_cartpole")

model = R2VPO.load("r2vpo_cartpole", env=env)
mean, std = evaluate_policy(model, env, n_eval_episodes=20)
print(f"Return: {mean:.0f} +/- {std:.0f}")
