"""
Learning curves of R2VPO beside SB3's PPO: same network, environments, budget and shared hyperparameters.

    python benchmarks/learning.py run     # appends each finished run to benchmarks/results/learning.csv, resumable
    python benchmarks/learning.py plot    # draws docs/images/learning.png and puts the table into README.md
"""

import argparse
import csv
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from matplotlib.figure import Figure
from readme import replace_in_readme
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tqdm import tqdm

from sb3_r2vpo import R2VPO

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning.csv"
PICTURE = ROOT / "docs" / "images" / "learning.png"

#: Compiled and plain gradient step are the same up to rounding: where their returns differ, it is chance
ALGORITHMS: dict[str, Any] = {"PPO": PPO, "R2VPO": R2VPO, "R2VPO plain": partial(R2VPO, compile=False)}
COLORS = {"PPO": "tab:gray", "R2VPO": "tab:red", "R2VPO plain": "tab:orange"}
SEEDS = (0, 1, 2, 3, 4)
ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5")
N_ENVS = 8
N_TIMESTEPS = 1_000_000
#: Both algorithms: 8 environments x 256 steps per rollout, everything else at its default
SHARED: dict[str, Any] = dict(n_steps=2048 // N_ENVS, device="cpu")
#: A point of the curve is the mean return of the training episodes that ended within so many steps
BIN = 20_000

Run = tuple[str, str, int]


class EpisodeReturns(BaseCallback):
    """Collects (timestep, return) of every finished training episode, before reward normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, info["episode"]["r"]))
        return True


def train(run: Run) -> list[dict[str, Any]]:
    """
    :param run: Algorithm, environment, seed
    :return: The points of its learning curve
    """
    algorithm, env_id, seed = run
    th.set_num_threads(1)
    env = VecNormalize(make_vec_env(env_id, n_envs=N_ENVS, seed=seed))
    returns = EpisodeReturns()
    ALGORITHMS[algorithm]("MlpPolicy", env, seed=seed, **SHARED).learn(N_TIMESTEPS, callback=returns)

    ends = np.arange(BIN, N_TIMESTEPS + BIN, BIN)
    steps, values = np.array(returns.episodes).T
    bins = np.searchsorted(ends, steps)
    return [
        dict(algorithm=algorithm, env=env_id, seed=seed, timesteps=end, mean_return=round(values[bins == i].mean(), 2))
        for i, end in enumerate(ends)
        if np.any(bins == i)
    ]


def finished_runs() -> set[Run]:
    """
    :return: The runs that the results file holds
    """
    if not RESULTS.exists():
        return set()
    return set(pd.read_csv(RESULTS)[["algorithm", "env", "seed"]].itertuples(index=False, name=None))


def run_all(n_jobs: int) -> None:
    """
    Run what is missing. A run is written when it has finished, in one piece.

    :param n_jobs: Processes side by side, each with one thread
    """
    done = finished_runs()
    runs = [(name, env_id, seed) for name in ALGORITHMS for env_id in ENVIRONMENTS for seed in SEEDS]
    missing = [run for run in runs if run not in done]
    # Seeds first, so that an interrupted comparison is a balanced one
    missing.sort(key=lambda run: run[2])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(n_jobs) as pool:
        for rows in tqdm(pool.imap_unordered(train, missing), total=len(missing), desc="runs"):
            is_new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerows(rows)


def plot() -> None:
    """Mean over seeds and the seeds themselves; the table has the last 100,000 steps."""
    results = pd.read_csv(RESULTS)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, len(ENVIRONMENTS))
    for ax, env_id in zip(axes, ENVIRONMENTS, strict=True):
        for algorithm, color in COLORS.items():
            curves = results[(results.env == env_id) & (results.algorithm == algorithm)]
            by_seed = curves.pivot(index="timesteps", columns="seed", values="mean_return")
            ax.plot(
                by_seed.index,
                by_seed.mean(axis=1),
                color=color,
                linewidth=2.5,
                label=f"{algorithm} ({by_seed.shape[1]} seeds)",
            )
            # Seeds one by one: a mean between two gaits is nobody's return
            ax.plot(by_seed.index, by_seed, color=color, alpha=0.4, linewidth=0.8)
        ax.set(title=env_id, xlabel="timesteps", ylabel="return of training episodes")
        ax.grid(alpha=0.3)
        ax.legend(loc="upper left")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    replace_in_readme("learning", table(results))
    print(f"Picture: {PICTURE.relative_to(ROOT)}\n\n{table(results)}")


def table(results: pd.DataFrame) -> str:
    """
    :param results: The results file
    :return: A Markdown table
    """
    lines = ["| mean return of the last 100,000 steps (by seed) | " + " | ".join(ALGORITHMS) + " |"]
    lines.append("|---" * (1 + len(ALGORITHMS)) + "|")
    last = results[results.timesteps > N_TIMESTEPS - 100_000].groupby(["env", "algorithm", "seed"]).mean_return.mean()
    for env_id in ENVIRONMENTS:
        seeds = [last[env_id, algorithm] for algorithm in ALGORITHMS]
        cells = [f"{values.mean():.0f} ({', '.join(f'{value:.0f}' for value in values)})" for values in seeds]
        lines.append(f"| {env_id} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "plot"])
    parser.add_argument("--n-jobs", type=int, default=2, help="processes side by side")
    args = parser.parse_args()
    run_all(args.n_jobs) if args.command == "run" else plot()
