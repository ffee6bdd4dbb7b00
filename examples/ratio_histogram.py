"""The distribution of the policy ratio in TensorBoard, R2VPO's soft brake beside PPO's clip."""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_r2vpo import R2VPO, RatioHistogramCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=50_000, help="of each algorithm")
args = parser.parse_args()

for algorithm in (PPO, R2VPO):
    env = make_vec_env("Pendulum-v1", n_envs=8, seed=0)
    model = algorithm("MlpPolicy", env, n_steps=256, gamma=0.9, seed=0, device="cpu", tensorboard_log="logs/ratio")
    model.learn(args.timesteps, callback=RatioHistogramCallback())
print("Now: tensorboard --logdir logs/ratio, tab 'Histograms'")
