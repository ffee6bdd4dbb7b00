"""
One training through RL Zoo, with its entry of hyperparameters, evaluated as RL Zoo evaluates: run and told as one record.

    python benchmarks/zoo_training.py '{"environment": "Hopper-v5", "algorithm": "r2vpo", "seed": 100}'
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rl_zoo3
import torch as th
import yaml
from peers import PPO
from protocol import defaults_of
from rl_zoo3.utils import ALGOS as ZOO_ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization
from training import learning_curve, rounded

from sb3_r2vpo import R2VPO
from sb3_r2vpo.zoo import ALGOS, hyperparameter_file, register
from sb3_r2vpo.zoo.envpool import EnvPoolExperimentManager
from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager

#: As RL Zoo's benchmark
N_EVALUATION_STEPS = 150_000
N_EVALUATION_ENVS = 10


class Training(NamedTuple):
    """
    One training.

    :param environment: Its id
    :param algorithm: RL Zoo's name of it
    :param seed: Of weights, actions and environments
    :param changes: Hyperparameters that differ from the entry
    :param compiled: Whether PPO goes through R2VPO's compiled gradient step and rollouts
    :param envpool: Whether to train and evaluate on EnvPool's environments, where RL Zoo does on Gymnasium's
    """

    environment: str
    algorithm: str
    seed: int
    changes: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    compiled: bool = False
    envpool: bool = False


class CompiledPPO(PPO):
    """
    SB3's PPO through R2VPO's compiled gradient step and rollouts.

    :param args: Arguments of SB3's PPO up to ``gae_lambda``
    :param clip_range: ε, or a schedule of it that stays
    :param kwargs: The other arguments of SB3's PPO
    :raises ValueError: When ε falls
    """

    def __init__(self, *args: Any, clip_range: Any = 0.2, **kwargs: Any) -> None:
        epsilon = FloatSchedule(clip_range)
        if epsilon(1.0) != epsilon(0.0):
            raise ValueError(f"`clip_range` falls from {epsilon(1.0)} to {epsilon(0.0)}: only a constant one is compiled")
        super().__init__(*args, clip_range=epsilon(1.0), compile=True, **kwargs)


class Episodes(BaseCallback):
    """Keeps when each episode in training ended, and its return."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        self.ends += [(self.num_timesteps, info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True


def entry(training: Training) -> dict[str, Any]:
    """
    :param training: A training
    :return: Its hyperparameters, RL Zoo's where the algorithm is not ours. RL Zoo has MuJoCo's v4 only: it counts for v5
    :raises ValueError: When the file has none for the environment
    """
    peers = Path(rl_zoo3.__file__).parent / "hyperparams"
    file = hyperparameter_file(training.algorithm) if training.algorithm in ALGOS else peers / f"{training.algorithm}.yml"
    entries = yaml.safe_load(Path(file).read_text())
    for name in (training.environment, training.environment.replace("-v5", "-v4")):
        if name in entries:
            return {**entries[name], **training.changes}
    raise ValueError(f"{file} has no entry for {training.environment}")


def defaults(training: Training) -> dict[str, Any]:
    """
    :param training: A training
    :return: What its record says of R2VPO's defaults, which its entry says nothing of; nothing where it is another algorithm's
    """
    return {"defaults": as_json(defaults_of(R2VPO))} if training.algorithm == "r2vpo" else {}


def set_up(training: Training, folder: str) -> tuple[R2VPOExperimentManager, BaseAlgorithm]:
    """
    :param training: A training
    :param folder: Where its logs go
    :return: RL Zoo's manager of it, and the model, which has one thread
    """
    register()
    if training.compiled:
        ZOO_ALGOS["ppo"] = CompiledPPO
    th.set_num_threads(1)
    config = Path(folder) / "entry.yml"
    config.write_text(yaml.safe_dump({training.environment: entry(training)}))
    args = argparse.Namespace(env=training.environment, env_kwargs=None, uuid=False, seed=training.seed, vec_env="dummy")
    manager_class = EnvPoolExperimentManager if training.envpool else R2VPOExperimentManager
    settings = dict(eval_freq=-1, log_interval=-1, seed=training.seed, verbose=0, config=str(config))
    manager = manager_class(args, training.algorithm, training.environment, folder, **settings)
    experiment = manager.setup_experiment()
    assert experiment is not None
    return manager, experiment[0]


def train(training: Training) -> dict[str, Any]:
    """
    :param training: A training
    :return: Its record: the training, its hyperparameters, times and returns
    """
    # The file may be another one when the training is over
    head = {**training._asdict(), "entry": as_json(entry(training)), **defaults(training)}
    with tempfile.TemporaryDirectory() as folder:
        manager, model = set_up(training, folder)
        episodes = Episodes()
        manager.callbacks.append(episodes)
        wall, cpu = time.perf_counter(), time.process_time()
        manager.learn(model)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        eval_env = manager.create_envs(N_EVALUATION_ENVS, eval_env=True, no_log=True)
        eval_env.seed(training.seed + 1000)
        assert model.env is not None
        sync_envs_normalization(model.env, eval_env)
        returns = deterministic_returns(model, eval_env, N_EVALUATION_STEPS)
    curve = learning_curve(episodes.ends, model.num_timesteps)
    return {
        **head,
        "date": datetime.date.today().isoformat(),
        "timesteps": model.num_timesteps,
        "wall_seconds": rounded(wall),
        "cpu_seconds": rounded(cpu),
        "mean_return": rounded(float(np.mean(returns))),
        "std_return": rounded(float(np.std(returns))),
        "n_episodes": len(returns),
        "curve": curve,
    }


def deterministic_returns(model: BaseAlgorithm, env: VecEnv, n_steps: int) -> list[float]:
    """
    :param model: A model
    :param env: Environments with a ``Monitor``
    :param n_steps: Steps of all environments together
    :return: Returns of the deterministic policy in the episodes that end within these steps
    """
    returns: list[float] = []
    observations: Any = env.reset()
    states, starts = None, np.ones(env.num_envs, dtype=bool)
    for _ in range(n_steps // env.num_envs):
        actions, states = model.predict(observations, states, starts, deterministic=True)
        observations, _, starts, infos = env.step(actions)
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    return returns


def as_json(value: Any) -> Any:
    """
    :param value: Anything
    :return: What is read back of it
    """
    return json.loads(json.dumps(value, default=str))


if __name__ == "__main__":
    # What RL Zoo and the libraries print is not the record
    sys.stdout, stdout = sys.stderr, sys.stdout
    print(json.dumps(train(Training(**json.loads(sys.argv[1])))), file=stdout)
