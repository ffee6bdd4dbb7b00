"""
How far single samples move in one update: the policy ratio after a rollout's updates, PPO's clip beside R2VPO's brake.

    python benchmarks/ratio_spread.py    # benchmarks/results/ratio_spread.csv, docs/images/ratio_spread.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch as th
from matplotlib.figure import Figure
from readme import DOCS
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_r2vpo import R2VPO, RatioHistogramCallback

RESULTS = Path(__file__).parent / "results" / "ratio_spread.csv"
PICTURE = DOCS / "images" / "ratio_spread.png"
ALGORITHMS = {"PPO": PPO, "R2VPO": R2VPO}
COLORS = {"PPO": "tab:gray", "R2VPO": "tab:red"}
N_ENVS = 8
N_TIMESTEPS = 300_000
#: The histogram is that of the last so many rollouts
N_ROLLOUTS = 20
EDGES = np.linspace(0, 3, 121)


class KeepRatios(RatioHistogramCallback):
    """Keeps what it logs."""

    def __init__(self) -> None:
        super().__init__()
        self.ratios: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        if "train/ratio" in self.logger.name_to_value:
            self.ratios.append(self.logger.name_to_value["train/ratio"].numpy())  # type: ignore[attr-defined]


def measure(algorithm: str) -> pd.DataFrame:
    """
    :param algorithm: Name of the algorithm
    :return: Fraction of samples in each bin of the ratio, what lies beyond in the last
    """
    env = VecNormalize(make_vec_env("HalfCheetah-v5", n_envs=N_ENVS, seed=0))
    callback = KeepRatios()
    model = ALGORITHMS[algorithm]("MlpPolicy", env, n_steps=2048 // N_ENVS, seed=0, device="cpu")
    model.learn(N_TIMESTEPS, callback=callback)
    ratios = np.concatenate(callback.ratios[-N_ROLLOUTS:])
    counts, _ = np.histogram(ratios.clip(EDGES[0], EDGES[-1]), EDGES)
    variance = np.square(ratios - 1).mean()
    return pd.DataFrame(dict(algorithm=algorithm, ratio=EDGES[:-1], fraction=counts / len(ratios), variance=variance))


def plot(results: pd.DataFrame) -> None:
    """
    :param results: The measurements of all algorithms
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for algorithm in ALGORITHMS:
        rows = results[results.algorithm == algorithm]
        label = f"{algorithm}, variance {rows.variance.iloc[0]:.3f}"
        ax.stairs(rows.fraction, EDGES, fill=True, alpha=0.4, color=COLORS[algorithm], label=label)
    for edge in (0.8, 1.2):
        ax.axvline(edge, color=COLORS["PPO"], linestyle="--", linewidth=1)
    ax.set(title="HalfCheetah-v5", xlabel="policy ratio after the update", ylabel="fraction of samples", yscale="log")
    ax.legend()
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    th.set_num_threads(1)
    measurements = pd.concat([measure(algorithm) for algorithm in ALGORITHMS])
    measurements.to_csv(RESULTS, index=False, float_format="%.6g")
    plot(measurements)
