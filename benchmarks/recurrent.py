"""
Learning of RecurrentR2VPO beside sb3-contrib's RecurrentPPO where the velocities are hidden, with RL Zoo's hyperparameters.

    python benchmarks/recurrent.py          # appends each finished run to benchmarks/results/recurrent.csv, resumable
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_r2vpo.zoo import register
from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager

RESULTS = Path(__file__).parent / "results" / "recurrent.csv"
ENVIRONMENTS = ("CartPoleNoVel-v1", "PendulumNoVel-v1", "MountainCarContinuousNoVel-v0")
MANAGERS: dict[str, type[ExperimentManager]] = {"r2vpo_lstm": R2VPOExperimentManager, "ppo_lstm": ExperimentManager}
FIELDS = ("algorithm", "environment", "seed", "timesteps", "mean_return", "std_return", "training_return", "seconds")
N_EVAL_EPISODES = 100


def learn(algorithm: str, env_id: str, seed: int) -> dict[str, Any]:
    """
    :param algorithm: RL Zoo's name of it
    :param env_id: RL Zoo's name of the environment
    :param seed: Seed
    :return: One row of results: the returns of deterministic episodes with the final policy, the mean of the last 100
        episodes in training, and the time of training, which other processes on the machine have a part in
    """
    with tempfile.TemporaryDirectory() as folder:
        env_args = argparse.Namespace(env=env_id, env_kwargs=None, uuid=False, seed=seed, vec_env="dummy")
        settings: dict[str, Any] = dict(eval_freq=-1, log_interval=-1, seed=seed, verbose=0)
        manager = MANAGERS[algorithm](env_args, algorithm, env_id, folder, **settings)
        experiment = manager.setup_experiment()
        assert experiment is not None
        model, _ = experiment
        start = time.perf_counter()
        manager.learn(model)
        seconds = time.perf_counter() - start
        eval_env = manager.create_envs(1, eval_env=True)
        eval_env.seed(seed + 1000)
        assert model.env is not None and model.ep_info_buffer is not None
        sync_envs_normalization(model.env, eval_env)
        returns, _ = evaluate_policy(model, eval_env, N_EVAL_EPISODES, deterministic=True, return_episode_rewards=True)
    return dict(
        algorithm=algorithm,
        environment=env_id,
        seed=seed,
        timesteps=model.num_timesteps,
        mean_return=round(float(np.mean(returns)), 1),
        std_return=round(float(np.std(returns)), 1),
        training_return=round(float(np.mean([info["r"] for info in model.ep_info_buffer])), 1),
        seconds=round(seconds),
    )


def main() -> None:
    """Run what the results file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    parser.add_argument("--algorithms", nargs="+", default=list(MANAGERS), choices=MANAGERS)
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2], type=int)
    args = parser.parse_args()
    register()
    th.set_num_threads(1)
    RESULTS.touch()
    with RESULTS.open(newline="") as file:
        done = {(row["algorithm"], row["environment"], int(row["seed"])) for row in csv.DictReader(file)}
    for seed in args.seeds:
        for env_id in args.environments:
            for algorithm in args.algorithms:
                if (algorithm, env_id, seed) in done:
                    continue
                row = learn(algorithm, env_id, seed)
                with RESULTS.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
