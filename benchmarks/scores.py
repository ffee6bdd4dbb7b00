"""From records to scores with intervals, by rliable (https://arxiv.org/abs/2108.13264)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from protocol import ALGORITHMS, TASKS_OF
from rliable import library, metrics
from runs import Record
from scipy.stats import trim_mean

#: Returns of the DeepMind Control suite are in [0, 1000]
MAX_RETURN = 1000.0
REPETITIONS = 1000

#: Length of every episode there
EPISODE_STEPS = 1000


def training_curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """
    :param record: A record
    :return: Timesteps, and at each the mean return of the last episode of every environment in training. Where they are in
        step these end at once, and are one point of the recorded curve; of staggered ones it has some in every bin
    """
    steps, returns = np.array(record["curve"], dtype=float).T
    age = steps[:, None] - steps
    is_last = (age >= 0) & (age < record["configuration"]["n_envs"] * EPISODE_STEPS)
    return steps, is_last @ returns / is_last.sum(axis=1)


def last_episodes(record: Record) -> float:
    """
    :param record: A record
    :return: Where its ``training_curve`` ends
    """
    return float(training_curve(record)[1][-1])


def mean_of_training(record: Record) -> float:
    """
    :param record: A record
    :return: Mean of its ``training_curve``, whose points are equally far apart
    """
    return float(training_curve(record)[1].mean())


#: The two scores of a run
SCORES: dict[str, Callable[[Record], float]] = {
    "training policy": last_episodes,
    "deterministic policy": lambda record: record["deterministic"][-1],
}
AGGREGATES = {
    "IQM": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": metrics.aggregate_optimality_gap,
}


class Estimate(NamedTuple):
    """A value and its 95 % interval, arrays for a curve."""

    value: Any
    low: Any
    high: Any


@dataclass(frozen=True, eq=False)
class Comparison:
    """
    The runs of one regime that can be compared.

    :param regime: Name of the regime
    :param tasks: Those on which every algorithm has been run
    :param seeds: By algorithm, those that it has on all these tasks
    :param left_out: Algorithms without results on some of the tasks, or with one seed where others have several
    :param records: By algorithm, task, seed
    """

    regime: str
    tasks: list[str]
    seeds: dict[str, list[int]]
    left_out: list[str]
    records: dict[tuple[str, str, int], Record]

    def values(self, algorithm: str, value: Callable[[Record], Any]) -> np.ndarray:
        """
        :param algorithm: One of the algorithms
        :param value: What to take of a record
        :return: Array of shape (n_seeds, n_tasks, ...)
        """
        seeds = self.seeds[algorithm]
        return np.array([[value(self.records[algorithm, task, seed]) for task in self.tasks] for seed in seeds], dtype=float)

    def final(self, algorithm: str, score: str) -> np.ndarray:
        """
        :param algorithm: One of the algorithms
        :param score: One of the ``SCORES``
        :return: Array of shape (n_seeds, n_tasks)
        """
        return self.values(algorithm, SCORES[score])

    def curve(self, algorithm: str) -> np.ndarray:
        """
        :param algorithm: One of the algorithms
        :return: Return of the training policy at ``steps``, of shape (n_seeds, n_tasks, n_points)
        """
        return self.values(algorithm, lambda record: np.interp(self.steps, *training_curve(record)))

    @property
    def steps(self) -> np.ndarray:
        """Timesteps of the points of every curve; they are the same wherever episodes are of one length."""
        return np.array(next(iter(self.records.values()))["curve"])[:, 0]

    def peer(self, score: str, method: str = "PPO") -> str | None:
        """
        :param score: One of the ``SCORES``
        :param method: PPO or SPO
        :return: The one with the best ε
        """
        candidates = [algorithm for algorithm in self.seeds if algorithm.startswith(method)]
        return max(candidates, key=lambda a: metrics.aggregate_iqm(self.final(a, score)), default=None)


def compare(records: list[Record], regime: str) -> Comparison | None:
    """
    :param records: Records of any runs
    :param regime: Name of a regime
    :return: What can be compared in it; ``None`` without results
    """
    by_run = {(r["algorithm"], r["task"], r["seed"]): r for r in records if r["regime"] == regime and not r["changes"]}
    run = {algorithm: {task for a, task, _ in by_run if a == algorithm} for algorithm in ALGORITHMS}
    present = [algorithm for algorithm in ALGORITHMS if run[algorithm]]
    # An algorithm with fewer seeds waits until it has been run on the tasks of those with the most
    most = max((ALGORITHMS[algorithm].n_seeds for algorithm in present), default=0)
    main = [run[algorithm] for algorithm in present if ALGORITHMS[algorithm].n_seeds == most]
    tasks = [task for task in TASKS_OF[regime] if all(task in tasks for tasks in main)]
    if not tasks or not main:
        return None
    every_seed = {seed for *_, seed in by_run}
    seeds = {a: [s for s in sorted(every_seed) if all((a, task, s) in by_run for task in tasks)] for a in present}
    # One seed says nothing beside several
    at_least = min(2, max(map(len, seeds.values())))
    left_out = [algorithm for algorithm in present if len(seeds[algorithm]) < at_least]
    seeds = {algorithm: common for algorithm, common in seeds.items() if algorithm not in left_out}
    kept = {(a, task, s): by_run[a, task, s] for a, common in seeds.items() for task in tasks for s in common}
    return Comparison(regime, tasks, seeds, left_out, kept) if seeds else None


@cache
def aggregates(comparison: Comparison, score: str) -> dict[str, dict[str, Estimate]]:
    """
    :param comparison: The runs of a regime
    :param score: One of the ``SCORES``
    :return: By algorithm, each of the ``AGGREGATES`` of returns / 1000
    """
    scores = {algorithm: comparison.final(algorithm, score) / MAX_RETURN for algorithm in comparison.seeds}
    estimates = intervals(scores, lambda x: np.array([aggregate(x) for aggregate in AGGREGATES.values()]))
    return {
        algorithm: {name: Estimate(*(row[i] for row in estimate)) for i, name in enumerate(AGGREGATES)}
        for algorithm, estimate in estimates.items()
    }


def intervals(scores: Any, function: Callable[..., np.ndarray]) -> dict[str, Estimate]:
    """
    :param scores: By algorithm, scores of shape (n_seeds, n_tasks, ...), or a pair of such
    :param function: From scores to an array
    :return: By algorithm, its value with stratified bootstrap intervals
    """
    # rliable draws from the global generator: the same results give the same report
    np.random.seed(0)
    values, limits = library.get_interval_estimates(scores, function, reps=REPETITIONS)
    return {name: Estimate(values[name], *limits[name]) for name in scores}


@cache
def iqm_curves(comparison: Comparison) -> dict[str, Estimate]:
    """
    :param comparison: The runs of a regime
    :return: By algorithm, the IQM of its training policy at each of the ``steps``
    """
    curves = {algorithm: comparison.curve(algorithm) / MAX_RETURN for algorithm in comparison.seeds}
    return intervals(curves, lambda x: trim_mean(x.reshape(-1, x.shape[-1]), 0.25, axis=0))


def profiles(comparison: Comparison, score: str, thresholds: np.ndarray) -> dict[str, Estimate]:
    """
    :param comparison: The runs of a regime
    :param score: One of the ``SCORES``
    :param thresholds: Scores, of returns / 1000
    :return: By algorithm, the share of runs above each threshold
    """
    scores = {algorithm: comparison.final(algorithm, score) / MAX_RETURN for algorithm in comparison.seeds}
    return intervals(scores, lambda x: (x[..., None] > thresholds).mean(axis=(0, 1)))


def improvement(comparison: Comparison, algorithm: str, over: str, score: str) -> Estimate:
    """
    :param comparison: The runs of a regime
    :param algorithm: X
    :param over: Y
    :param score: One of the ``SCORES``
    :return: P(X > Y), a tie counting half, mean over tasks
    """
    pair = [comparison.final(name, score) for name in (algorithm, over)]
    estimate = intervals({algorithm: pair}, lambda x, y: np.array([probability_of_improvement(x, y)]))[algorithm]
    return Estimate(*(float(values[0]) for values in estimate))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """
    rliable's in a hundredth of its time, which thousands of repetitions need.

    :param x: Scores of shape (n_seeds, n_tasks)
    :param y: Scores of shape (n_seeds, n_tasks)
    :return: P(x > y), a tie counting half, mean over tasks
    """
    return float(((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean())


def share_of_steps(comparison: Comparison, curve: np.ndarray, target: float, total_timesteps: int) -> float | None:
    """
    :param comparison: The runs of a regime
    :param curve: Values at its ``steps``
    :param target: The value to reach
    :param total_timesteps: Of the regime
    :return: Share of the steps after which the curve is there for the first time, ``None`` if it never is
    """
    reached = np.flatnonzero(curve >= target)
    return comparison.steps[reached[0]] / total_timesteps if len(reached) else None


def deepest_fall(record: Record) -> float:
    """
    :param record: A record
    :return: How far the deterministic policy's return fell below what it had been before, at worst
    """
    returns = np.array(record["deterministic"], dtype=float)
    return float((np.maximum.accumulate(returns) - returns).max())


def deepest_falls(comparison: Comparison, algorithm: str) -> np.ndarray:
    """
    :param comparison: The runs of a regime
    :param algorithm: One of the algorithms
    :return: The ``deepest_fall`` of each run, of shape (n_seeds, n_tasks)
    """
    return comparison.values(algorithm, deepest_fall)


def spreads(comparison: Comparison, algorithm: str, score: str) -> np.ndarray:
    """
    :param comparison: The runs of a regime
    :param algorithm: One of the algorithms, with two seeds or more
    :param score: One of the ``SCORES``
    :return: Standard deviation between seeds, of shape (n_tasks,)
    """
    return comparison.final(algorithm, score).std(axis=0, ddof=1)
