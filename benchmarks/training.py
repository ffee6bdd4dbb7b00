"""
One training of a benchmark: run, watched and told as one record.

    python benchmarks/training.py '{"task": "CheetahRun", "regime": "small", "algorithm": "R2VPO", "seed": 0}' [cuda]
"""

import datetime
import json
import math
import os
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch as th
from protocol import ALGORITHMS, REGIMES, Run, arguments_of, configuration
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_r2vpo import make_envpool_vec_env

#: Points of the learning curve and of each series
N_POINTS = 60
#: The deterministic policy is evaluated at as many evenly spaced points, the last at the end
N_EVALUATIONS = 10
N_EVALUATION_EPISODES = 32
PACKAGES = ("torch", "stable_baselines3", "sb3_contrib", "envpool", "numpy")
#: Logger's keys, by the name of the series
SERIES = {
    "ratio_variance": "train/ratio_variance",
    "ratio_variance_last_epoch": "train/ratio_variance_last_epoch",
    "var_coef": "train/var_coef",
    "explained_variance": "train/explained_variance",
    "target_var": "train/target_var",
    "signal": "train/signal",
    "quiet": "train/quiet",
}


class Recorder(BaseCallback):
    """
    Keeps what the record tells. The time of its evaluations is not the training's.

    :param run: The training
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.total_timesteps = configuration(run)["total_timesteps"]
        self.evaluation_env = make_envpool_vec_env(
            f"{run.task}-v1", N_EVALUATION_EPISODES, seed=first_seed(run) + 500, num_threads=1
        )
        self.episodes: list[tuple[int, float]] = []
        self.series: dict[str, list[float]] = {name: [] for name in ("entropy", *SERIES)}
        self.evaluations: list[float] = []
        self.seconds = {"wall_seconds": 0.0, "cpu_seconds": 0.0}

    def _on_training_start(self) -> None:
        self.started = clocks()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, info["episode"]["r"]))
        return True

    def _on_rollout_start(self) -> None:
        # The update of the rollout before has just ended
        if self.num_timesteps > 0:
            self._watch()
        if self.num_timesteps >= (len(self.evaluations) + 1) / N_EVALUATIONS * self.total_timesteps:
            self._evaluate()

    def _on_training_end(self) -> None:
        self._watch()
        self._evaluate()
        self.evaluation_env.close()

    def _watch(self) -> None:
        for name, key in SERIES.items():
            self.series[name].append(float(self.logger.name_to_value.get(key, math.nan)))
        log_std: th.Tensor = self.model.policy.log_std  # type: ignore[assignment]
        self.series["entropy"].append((log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().item())

    def _evaluate(self) -> None:
        for name, start, now in zip(self.seconds, self.started, clocks(), strict=True):
            self.seconds[name] += now - start
        assert isinstance(self.training_env, VecNormalize)
        self.evaluations.append(deterministic_return(self.model, self.training_env, self.evaluation_env))
        self.started = clocks()

    def record(self) -> dict[str, Any]:
        """
        :return: What was kept, short
        """
        return {
            **{name: rounded(seconds) for name, seconds in self.seconds.items()},
            "curve": learning_curve(self.episodes, self.total_timesteps),
            "deterministic": [rounded(value) for value in self.evaluations],
            **{name: thinned(values) for name, values in self.series.items() if not np.isnan(values).all()},
        }


def train(run: Run, device: str = "cpu") -> dict[str, Any]:
    """
    :param run: A training
    :param device: ``"cpu"`` or ``"cuda"``
    :return: Its record: the run, its configuration, versions, device, times, returns and series
    """
    th.set_num_threads(1)
    regime = REGIMES[run.regime]
    pool = make_envpool_vec_env(f"{run.task}-v1", regime.n_envs, num_threads=1, stagger=regime.stagger)
    config = configuration(run)
    env = VecNormalize(pool, gamma=config["gamma"])
    arguments = {name: value for name, value in arguments_of(run).items() if name != "total_timesteps"}
    model = ALGORITHMS[run.algorithm].make("MlpPolicy", env, seed=first_seed(run), device=device, **arguments)
    recorder = Recorder(run)
    model.learn(config["total_timesteps"], callback=recorder)
    return {
        **run._asdict(),
        "configuration": config,
        "versions": {name: version(name) for name in PACKAGES},
        "device": th.cuda.get_device_name() if device == "cuda" else "cpu",
        "date": datetime.date.today().isoformat(),
        **recorder.record(),
    }


def first_seed(run: Run) -> int:
    """
    :param run: A training
    :return: Seed of weights, actions and the first environment. The other environments have those that follow: none of
        them is another run's
    """
    return 1000 * run.seed


def clocks() -> tuple[float, float]:
    """
    :return: Wall-clock and CPU seconds
    """
    return time.perf_counter(), time.process_time()


def deterministic_return(model: BaseAlgorithm, training_env: VecNormalize, env: Any) -> float:
    """
    :param model: A model
    :param training_env: Whose statistics normalize the observations
    :param env: Environments of its own, whose episodes have the same length
    :return: Mean return of the deterministic policy in the first episode of each
    """
    observations = env.reset()
    returns = np.full(env.num_envs, np.nan)
    while np.isnan(returns).any():
        actions, _ = model.predict(training_env.normalize_obs(observations), deterministic=True)
        observations, _, dones, infos = env.step(actions)
        for i in np.flatnonzero(dones & np.isnan(returns)):
            returns[i] = infos[i]["episode"]["r"]
    return float(returns.mean())


def learning_curve(episodes: list[tuple[int, float]], total_timesteps: int) -> list[tuple[int, float | None]]:
    """
    :param episodes: Timestep of the end, and return, of each episode in training
    :param total_timesteps: Of the training
    :return: Mean timestep and mean return of the episodes that ended in each of ``N_POINTS`` equal bins. Episodes of one
        length all end at once: many bins have none, and no point
    """
    steps, returns = np.array(episodes).T if episodes else np.empty((2, 0))
    bins = np.minimum(steps * N_POINTS // total_timesteps, N_POINTS - 1)
    return [(round(steps[bins == i].mean()), rounded(returns[bins == i].mean())) for i in np.unique(bins)]


def thinned(values: list[float]) -> list[float | None]:
    """
    :param values: One value per update
    :return: Means of up to ``N_POINTS`` equal stretches
    """
    return [rounded(part.mean()) for part in np.array_split(values, min(N_POINTS, len(values)))]


def rounded(value: float) -> float | None:
    """
    :param value: A number
    :return: Four significant digits of it; JSON has no NaN
    """
    return float(f"{value:.4g}") if math.isfinite(value) else None


if __name__ == "__main__":
    # What libraries print is not the record
    sys.stdout, stdout = sys.stderr, sys.stdout
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(train(Run(**json.loads(sys.argv[1])), *sys.argv[2:])), file=stdout)
