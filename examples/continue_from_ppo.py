"""Go on with R2VPO from a trained PPO model: policy, value function and optimizer state are taken over."""

import argparse
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_r2vpo import R2VPO

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=30_000, help="of each algorithm")
args = parser.parse_args()

env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
settings: dict[str, Any] = dict(n_steps=128, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
PPO("MlpPolicy", env, **settings).learn(args.timesteps).save("ppo_cartpole")

model = R2VPO("MlpPolicy", env, **settings)
# The file holds no dual variable, hence not an exact match
model.set_parameters("ppo_cartpole", exact_match=False)
print("PPO:   ", evaluate_policy(model, env, n_eval_episodes=20))
model.learn(args.timesteps)
print("R2VPO: ", evaluate_policy(model, env, n_eval_episodes=20))
