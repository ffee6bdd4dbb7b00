"""
Time of one gradient step inside ``train()``: SB3's PPO, R2VPO plain and R2VPO compiled, interleaved in one process.

    python benchmarks/train_step.py                          # the default policy on HalfCheetah's spaces
    python benchmarks/train_step.py --batch-size 512 --net-arch 256 256

Everything that ``train()`` does counts: minibatches, gradient steps, logging. Compiling does not, it is printed.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_r2vpo import R2VPO

RESULTS = Path(__file__).parent / "results" / "train_step.json"


class NoEnv(gym.Env):
    """HalfCheetah's spaces without its physics."""

    observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.standard_normal(17, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.np_random.standard_normal(17, dtype=np.float32), float(action[0]), False, False, {}


def make_models(batch_size: int, args: argparse.Namespace) -> dict[str, OnPolicyAlgorithm]:
    """
    :param batch_size: Minibatch size
    :param args: Command line arguments
    :return: The models to compare, by name, each with a full rollout buffer
    """
    # So small a learning rate keeps the policy where it is, over any number of repeats
    shared: dict[str, Any] = dict(
        policy="MlpPolicy",
        n_steps=max(2048, 8 * batch_size),
        batch_size=batch_size,
        learning_rate=1e-7,
        policy_kwargs=dict(net_arch=args.net_arch),
        device=args.device,
        seed=0,
    )
    models: dict[str, OnPolicyAlgorithm] = {
        "PPO": PPO(env=NoEnv(), **shared),
        "R2VPO plain": R2VPO(env=NoEnv(), compile=False, **shared),
        "R2VPO compiled": R2VPO(env=NoEnv(), compile=True, **shared),
    }
    for name, model in models.items():
        model.set_logger(configure(None, []))
        _, callback = model._setup_learn(model.n_steps)
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        seconds = timed(model.train)
        print(f"{name}, batch {batch_size}: first update {seconds:.1f} s", flush=True)
    return models


def timed(function: Any) -> float:
    """
    :param function: To be called
    :return: Seconds it took
    """
    start = time.perf_counter()
    function()
    if th.cuda.is_available():
        th.cuda.synchronize()
    return time.perf_counter() - start


def measure(batch_size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """
    :param batch_size: Minibatch size
    :param args: Command line arguments
    :return: One row of results for each model
    """
    models = make_models(batch_size, args)
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.repeats):
        for name, model in models.items():
            n_minibatches = model.n_epochs * math.ceil(model.n_steps / batch_size)  # type: ignore[attr-defined]
            milliseconds[name].append(1000 * timed(model.train) / n_minibatches)
    # Ratios within a repeat: whatever else the machine does then, it does to all of them
    ratios = {
        name: [ppo / own for ppo, own in zip(milliseconds["PPO"], times, strict=True)] for name, times in milliseconds.items()
    }
    rows: list[dict[str, Any]] = [
        dict(
            model=name,
            batch_size=batch_size,
            ms_per_step=round(statistics.median(times), 4),
            times_as_fast_as_ppo=round(statistics.median(ratios[name]), 2),
            ms_all=[round(t, 4) for t in times],
        )
        for name, times in milliseconds.items()
    ]
    for row in rows:
        print(
            "{model:15} batch {batch_size:5}  {ms_per_step:8.3f} ms  {times_as_fast_as_ppo:6.2f}x PPO".format(**row),
            flush=True,
        )
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--net-arch", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    th.set_num_threads(args.threads)

    rows = [row for batch_size in args.batch_size for row in measure(batch_size, args)]
    setup = dict(torch=th.__version__, net_arch=args.net_arch, threads=args.threads, device=args.device)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(dict(setup=setup, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
