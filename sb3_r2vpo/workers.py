"""What a training shares with others that are the same training: nothing, unless torchrun has started several processes."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import explained_variance

from sb3_r2vpo import signal
from sb3_r2vpo.rollouts import Samples


class Workers:
    """
    The processes that train one model together: here this one alone. `distributed.TorchrunWorkers` are several, and says
    what becomes of all that is asked here.
    """

    rank = 0
    world_size = 1
    #: Makes a vector the mean of those of all processes, in place; None where there is but one
    average: Callable[[th.Tensor], None] | None = None

    def check_batch_size(self, batch_size: int) -> None:
        """
        :param batch_size: Size of the minibatches of all processes together
        :raises ValueError: When it cannot be divided among them
        """

    def own_seed(self, seed: int | None) -> int | None:
        """
        :param seed: The seed of the model
        :return: That of this process
        """
        return seed

    def begin(self, model: Any, total_timesteps: int, reset_num_timesteps: bool) -> None:
        """
        :param model: A model about to learn
        :param total_timesteps: Argument of ``learn``
        :param reset_num_timesteps: Argument of ``learn``
        :raises ValueError: When the processes are not about to do the same
        """

    def callbacks(self, callback: MaybeCallback, progress_bar: bool) -> tuple[list[BaseCallback], MaybeCallback, bool]:
        """
        :param callback: The user's callbacks
        :param progress_bar: Whether to show a progress bar
        :return: Callbacks to go before all others, those of the user's that run in this process, and whether to show the bar
        """
        return [], callback, progress_bar

    def before_rollout(self, model: Any) -> None:
        """
        :param model: The model
        """

    def after_rollout(self, model: Any, finished: bool) -> bool:
        """
        :param model: The model
        :param finished: Whether this process has collected its rollout, and not been stopped by a callback
        :return: Whether all have
        """
        return finished

    def minibatches(
        self, source: Callable[[int], Iterable[Samples]], batch_size: int, normalize_advantage: bool
    ) -> Iterable[Samples]:
        """
        :param source: From a batch size to one epoch of minibatches
        :param batch_size: Size of the minibatches of all processes together
        :param normalize_advantage: Whether advantages are to be normalized
        :return: The parts of the minibatches that are this process's
        """
        return source(batch_size)

    def correlation(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """
        :param x: One value for each sample
        :param y: Another one
        :return: Their correlation, over the samples of all processes
        """
        return signal.correlate(x, y)

    def total(self, numbers: np.ndarray) -> np.ndarray:
        """
        :param numbers: Of this process
        :return: Their sums over all processes
        """
        return numbers

    def explained_variance(self, values: np.ndarray, returns: np.ndarray) -> float:
        """
        :param values: Of the rollout
        :param returns: Of the rollout
        :return: How much of the variance of the returns the values explain, over the rollouts of all processes
        """
        return float(explained_variance(values, returns))

    def after_update(self, policy: th.nn.Module, maxima: np.ndarray) -> np.ndarray:
        """
        :param policy: The policy
        :param maxima: For each gradient step the largest of something among the samples of this process
        :return: The same among those of all
        """
        return maxima

    def everywhere(self, names: list[str]) -> list[str]:
        """
        :param names: Of what was found in this process
        :return: Of what was found in any
        """
        return names

    def write_once(self, path: str, write: Callable[[], None]) -> None:
        """
        :param path: A file, which is there afterwards
        :param write: Writes it
        """
        write()


def n_processes() -> int:
    """
    :return: How many processes torchrun has started, 1 without it
    """
    # Other launchers and containers set the latter too, and mean something else
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def own_rank() -> int:
    """
    :return: The number of this process among those that torchrun has started, 0 for the first or only one
    """
    return int(os.environ["RANK"]) if n_processes() > 1 else 0


def find_workers(device: th.device | str) -> Workers:
    """
    :param device: The device that is asked for
    :return: Those that torchrun has started
    """
    if n_processes() == 1:
        return Workers()
    from sb3_r2vpo.distributed import TorchrunWorkers

    return TorchrunWorkers(device)
