"""``torchrun --nproc-per-node 4 -m sb3_r2vpo train``: one run of RL Zoo, whose folder is the first process's."""

import os
import sys
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_r2vpo.workers import n_processes, own_rank
from sb3_r2vpo.zoo import ALGO, ALGOS, replace_in_zoo
from sb3_r2vpo.zoo.arguments import is_search, take


class ManyExperimentManager(ExperimentManager):
    """
    A mixin of the experiment manager of each process: what is counted in timesteps, is in those of all processes.
    """

    def create_callbacks(self) -> None:
        # They are counted in calls of the first process
        self.eval_freq, self.save_freq = (f // n_processes() if f > 0 else f for f in (self.eval_freq, self.save_freq))
        super().create_callbacks()


class FollowingExperimentManager(ManyExperimentManager):
    """
    A mixin of the experiment managers of the processes after the first one, which write nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tensorboard_log = None

    def create_log_folder(self) -> None:
        pass

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: Number of environments
        :param eval_env: Whether they are for the evaluation
        :param no_log: Whether to write no monitor file
        :return: The environments, which write none
        """
        return super().create_envs(n_envs, eval_env, no_log=True)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        pass

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        pass


def prepare_process(arguments: list[str]) -> None:
    """
    :param arguments: Arguments of RL Zoo's ``train``
    :raises ValueError: When it is not R2VPO that is to be trained, or hyperparameters are to be searched for
    """
    algo = take(("--algo",), arguments)[0] or ALGO
    if algo not in ALGOS:
        raise ValueError(f"`--algo` is {algo!r}: torchrun is for {', '.join(ALGOS)}, {algo} trains in one process")
    if is_search(arguments):
        raise ValueError("`--optimize` is not for torchrun: give its command once for each worker, without torchrun")
    is_first = own_rank() == 0
    if not is_first:
        sys.stdout = open(os.devnull, "w")
    mixin = ManyExperimentManager if is_first else FollowingExperimentManager
    manager = sys.modules["rl_zoo3.exp_manager"].ExperimentManager
    replace_in_zoo("ExperimentManager", type(mixin.__name__, (mixin, manager), {}))
