"""
One training in many processes, started by torchrun: ``torchrun --nproc-per-node 4 script.py``. Nothing imports this file in
any other process.

Each process has the whole model and environments of its own. They do the same at the same time, and wait for each other:

- before training, to compare what they are about to do and to take over the first one's weights,
- after each rollout, for the episodes, the ``VecNormalize`` statistics, and whether one of them has been told to stop,
- in each epoch, for the advantages' mean and standard deviation in every minibatch,
- in each gradient step, for gradients and metrics.
"""

import atexit
import inspect
import io
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from torch.nn.utils.rnn import pad_sequence

from sb3_r2vpo.checkpoints import ResumableCheckpointCallback
from sb3_r2vpo.rollouts import Samples, without_padding
from sb3_r2vpo.version import __version__
from sb3_r2vpo.workers import Workers, n_processes, own_rank

T = TypeVar("T")

#: Between the seeds of two processes: more than one has environments, whose seeds are the numbers from its own one on
SEED_STRIDE = 2**20
#: What writes files or a screen, and so is for the first process alone
FIRST_ONLY = (EvalCallback, CheckpointCallback, ProgressBarCallback, ResumableCheckpointCallback)
#: Arguments that may differ between the processes, or are compared by their parts
OWN = {"device", "env", "policy", "seed", "tensorboard_log", "verbose"}
#: What is compared besides the arguments
DERIVED = {"policy_class", "observation_space", "action_space", "n_envs", "num_timesteps"}
#: How long to wait for a sign of life when the connection has failed, in seconds
ROLL_CALL = 5.0
#: How long to wait for a file of the first process
WAIT_FOR_FILE = timedelta(seconds=60)


class LostWorkerError(RuntimeError):
    """Another process of the training has died, or has not come to where all of them meet."""


class Report(NamedTuple):
    """
    What a process tells the others after a rollout.

    :param finished: Whether the rollout is whole
    :param timesteps: Timesteps in its environments
    :param episodes: Return, length and time of the episodes that have ended, as of ``Monitor``
    :param successes: Whether they were a success, where the environment tells
    :param statistics: Mean, variance and number of what ``VecNormalize`` has seen, for each of its running statistics
    """

    finished: bool
    timesteps: int
    episodes: list[dict[str, Any]]
    successes: list[bool]
    statistics: list[tuple[np.ndarray, np.ndarray, float]]


class TorchrunWorkers(Workers):
    """
    The processes that torchrun has started, of which this is one.

    :param device: The device that is asked for: of several GPUs each process gets its own
    """

    def __init__(self, device: th.device | str) -> None:
        self.rank = own_rank()
        self.world_size = n_processes()
        self._names: list[str] = []
        self._saved: Counter[str] = Counter()
        self._statistics: list[RunningMeanStd] = []
        self._timesteps = 0
        self._windows: tuple[list[Any], list[Any]] = ([], [])
        if str(device) in ("auto", "cuda") and th.cuda.is_available():
            take_gpu(int(os.environ["LOCAL_RANK"]))

    def check_batch_size(self, batch_size: int) -> None:
        if batch_size % self.world_size > 0:
            raise ValueError(
                f"`batch_size` is {batch_size}: it must be a multiple of the number of processes, which is {self.world_size}, "
                "as each minibatch is divided among them"
            )

    def own_seed(self, seed: int | None) -> int | None:
        if self.rank == 0:
            return seed
        if seed is None:
            # From numpy's state: a script that seeds everything itself is reproducible
            seed = int(np.random.randint(2**31))
        return (seed + self.rank * SEED_STRIDE) % 2**32

    def begin(self, model: Any, total_timesteps: int, reset_num_timesteps: bool) -> None:
        """
        :raises ValueError: When the processes are not about to do the same, with the first difference
        :raises LostWorkerError: When one of them has died
        """
        self._join(model.device)
        self._compare(settings(model, total_timesteps, reset_num_timesteps))
        if self.rank > 0:
            model.set_logger(Logger(folder=None, output_formats=[]))
        self._take_over(model)

    def _join(self, device: th.device) -> None:
        if not dist.is_initialized():
            # Objects go through the CPU
            dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
            atexit.register(leave)
        self._names = self._gather(f"pid {os.getpid()} on {socket.gethostname()}")
        # Without an index it is the current one
        index = th.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        gpus = self._gather(f"cuda:{index} on {socket.gethostname()}" if device.type == "cuda" else None)
        for rank, gpu in enumerate(gpus):
            if gpu is not None and gpu in gpus[:rank]:
                raise ValueError(
                    f"`device` is {gpu} in rank {gpus.index(gpu)} and in rank {rank}: with `device='cuda'` each has its own"
                )

    def _compare(self, own: dict[str, str]) -> None:
        every = self._gather(own)
        for rank, other in enumerate(every):
            for name in {**every[0], **other}:
                if every[0].get(name) != other.get(name):
                    raise ValueError(
                        f"{name} is {every[0].get(name)} in rank 0 and {other.get(name)} in rank {rank}: "
                        "all processes must be started with the same"
                    )

    def _take_over(self, model: Any) -> None:
        """
        :param model: The model, whose parameters and statistics become those of the first process
        """
        statistics = running_statistics(model)
        content = io.BytesIO()
        if self.rank == 0:
            th.save((model.get_parameters(), [(s.mean, s.var, s.count) for s in statistics]), content)
        message = [content.getvalue()]
        self._meet(dist.broadcast_object_list, message, src=0)
        if self.rank > 0:
            parameters, moments = th.load(io.BytesIO(message[0]), map_location=model.device, weights_only=False)
            model.set_parameters(parameters)
            for running, (mean, var, count) in zip(statistics, moments, strict=True):
                running.mean, running.var, running.count = mean, var, count
        self._statistics = [running.copy() for running in statistics]

    def callbacks(self, callback: MaybeCallback, progress_bar: bool) -> tuple[list[BaseCallback], MaybeCallback, bool]:
        given = callback if isinstance(callback, list) else [] if callback is None else [callback]
        callbacks = [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in given]
        if progress_bar:
            callbacks.append(ProgressBarCallback())
        every = CallbackList(callbacks)
        if self.rank > 0:
            remove_first_only(every)
        return [CountAll(self.world_size, every)], every, False

    def before_rollout(self, model: Any) -> None:
        self._timesteps = model.num_timesteps
        self._windows = (list(model.ep_info_buffer), list(model.ep_success_buffer))
        # Without an end, so that what comes is told from what was there
        model.ep_info_buffer, model.ep_success_buffer = (deque(window) for window in self._windows)

    def after_rollout(self, model: Any, finished: bool) -> bool:
        statistics = running_statistics(model)
        report = Report(
            finished,
            (model.num_timesteps - self._timesteps) // self.world_size,
            list(model.ep_info_buffer)[len(self._windows[0]) :],
            list(model.ep_success_buffer)[len(self._windows[1]) :],
            [increment(now, before) for now, before in zip(statistics, self._statistics, strict=True)],
        )
        reports = self._gather(report)
        model.num_timesteps = self._timesteps + sum(r.timesteps for r in reports)
        episodes, successes = in_turns([r.episodes for r in reports]), in_turns([r.successes for r in reports])
        model.ep_info_buffer = deque([*self._windows[0], *episodes], maxlen=model._stats_window_size)
        model.ep_success_buffer = deque([*self._windows[1], *successes], maxlen=model._stats_window_size)
        for i, running in enumerate(statistics):
            merge(running, self._statistics[i], [r.statistics[i] for r in reports])
        self._statistics = [running.copy() for running in statistics]
        return all(r.finished for r in reports)

    def minibatches(
        self, source: Callable[[int], Iterable[Samples]], batch_size: int, normalize_advantage: bool
    ) -> Iterable[Samples]:
        parts = source(batch_size // self.world_size)
        if not normalize_advantage:
            return parts
        parts = list(parts)
        advantages = pad_sequence([without_padding(part).advantages.double() for part in parts], batch_first=True)
        sizes = advantages.new_tensor([len(without_padding(part).advantages) for part in parts])
        n, total, squares = self._sum(th.stack([sizes, advantages.sum(1), advantages.square().sum(1)]))
        means, stds = total / n, ((squares - total.square() / n) / (n - 1)).clamp(min=0.0).sqrt()
        return (
            part._replace(advantages=((part.advantages - mean) / (std + 1e-8)).to(part.advantages.dtype))
            for part, mean, std in zip(parts, means, stds, strict=True)
        )

    def average(self, vector: th.Tensor) -> None:
        self._meet(dist.all_reduce, vector)
        vector /= self.world_size

    def correlation(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        (var_x, covariance), (_, var_y) = self._covariance(th.stack([x, y]))
        return covariance / (var_x * var_y).sqrt()

    def total(self, numbers: np.ndarray) -> np.ndarray:
        return np.sum(self._gather(numbers), axis=0)

    def explained_variance(self, values: np.ndarray, returns: np.ndarray) -> float:
        (var_error, _), (_, var_returns) = self._covariance(th.as_tensor(np.stack([returns - values, returns])))
        return (1.0 - var_error / var_returns).item() if var_returns > 0 else np.nan

    def _covariance(self, rows: th.Tensor) -> th.Tensor:
        """
        :param rows: Of shape (n_variables, n_samples)
        :return: Covariances over the samples of all processes, of shape (n_variables, n_variables)
        """
        rows = rows.double()
        ones = th.ones_like(rows[:1])
        # Number, sums and products in one matrix
        sums = self._sum(th.cat([ones, rows]) @ th.cat([ones, rows]).T)
        mean = sums[0, 1:] / sums[0, 0]
        return sums[1:, 1:] / sums[0, 0] - th.outer(mean, mean)

    def after_update(self, policy: th.nn.Module, maxima: np.ndarray) -> np.ndarray:
        # Of batch normalizations
        buffers = [buffer for buffer in policy.buffers() if buffer.is_floating_point()]
        if buffers:
            vector = th.cat([buffer.flatten() for buffer in buffers])
            self.average(vector)
            for buffer, part in zip(buffers, vector.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))
        return np.max(self._gather(maxima), axis=0)

    def everywhere(self, names: list[str]) -> list[str]:
        return [f"{name} of rank {rank}" for rank, others in enumerate(self._gather(names)) for name in others]

    def write_once(self, path: str, write: Callable[[], None]) -> None:
        # Their folders may have been named after the second at which each process was started
        name = os.path.basename(path)
        self._saved[name] += 1
        saved = f"r2vpo/saved/{name}/{self._saved[name]}"
        if self.rank == 0:
            write()
        if not dist.is_initialized():
            return
        # Not a barrier: scripts may save in the first process only, and callbacks do
        store = dist.distributed_c10d._get_default_store()
        if self.rank == 0:
            store.set(saved, "")
            return
        with suppress(dist.DistStoreError):
            store.wait([saved], WAIT_FOR_FILE)

    def _sum(self, tensor: th.Tensor) -> th.Tensor:
        self._meet(dist.all_reduce, tensor)
        return tensor

    def _gather(self, value: T) -> list[T]:
        """
        :param value: Something that can be pickled
        :return: That of every process, by rank
        """
        values: list[Any] = [None] * self.world_size
        self._meet(dist.all_gather_object, values, value)
        return values

    def _meet(self, communicate: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """
        :param communicate: One of torch's functions that all processes have to call
        :param args: Its arguments
        :param kwargs: Its arguments
        :raises LostWorkerError: When one of them has not
        """
        try:
            communicate(*args, **kwargs)
        except RuntimeError as e:
            raise LostWorkerError(self._say_who_is_lost(e)) from e

    def _say_who_is_lost(self, error: RuntimeError) -> str:
        """
        :param error: What torch says
        :return: The ranks of those that do not notice that something is wrong
        """
        store = dist.distributed_c10d._get_default_store()
        # Those that still wait for this process, wait no longer
        leave()
        try:
            store.set(f"r2vpo/lost/{self.rank}", "")
            missing, deadline = [rank for rank in range(self.world_size)], time.monotonic() + ROLL_CALL
            while missing and time.monotonic() < deadline:
                time.sleep(0.05)
                missing = [rank for rank in missing if not store.check([f"r2vpo/lost/{rank}"])]
        except RuntimeError:
            # The store is in the process that torchrun was started in, on the first machine
            missing = [0]
        names = [f"rank {rank} ({self._names[rank]})" if self._names else f"rank {rank}" for rank in missing]
        who = (
            f"{' and '.join(names)} did not come: dead, or busy for longer than the timeout" if names else "nobody is missing"
        )
        return f"The processes of this training have lost each other: {who}. What was saved is whole. ({error})"


class CountAll(BaseCallback):
    """
    Counts the timesteps of the other processes too.

    :param world_size: Number of processes
    :param callbacks: The callbacks of this one
    """

    def __init__(self, world_size: int, callbacks: BaseCallback) -> None:
        super().__init__()
        self.world_size = world_size
        self.progress_bars = [c for c in every_callback(callbacks) if isinstance(c, ProgressBarCallback)]

    def _on_step(self) -> bool:
        others = (self.world_size - 1) * self.model.n_envs
        self.model.num_timesteps += others
        for progress_bar in self.progress_bars:
            progress_bar.pbar.update(others)
        return True


def take_gpu(local_rank: int) -> None:
    """
    :param local_rank: Number of this process on its machine
    :raises ValueError: When there are fewer GPUs
    """
    if local_rank >= th.cuda.device_count():
        raise ValueError(
            f"`device` is 'cuda', but this machine has {th.cuda.device_count()} GPUs for process {local_rank + 1} on it: "
            "start torchrun with a lower `--nproc-per-node`, or pass `device='cpu'`"
        )
    th.cuda.set_device(local_rank)


def leave() -> None:
    """Close the connections, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def settings(model: Any, total_timesteps: int, reset_num_timesteps: bool) -> dict[str, str]:
    """
    :param model: A model about to learn
    :param total_timesteps: Argument of ``learn``
    :param reset_num_timesteps: Argument of ``learn``
    :return: All that must be the same in each process, by what it is called, in words
    """
    inits = [base.__init__ for base in type(model).__mro__]  # type: ignore[misc]
    arguments = {name for init in inits for name in inspect.signature(init).parameters}
    normalizer = model.get_vec_normalize_env()
    names = (
        () if normalizer is None else ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
    )
    values = {
        "the version of sb3_r2vpo": __version__,
        "the version of torch": th.__version__,
        "the algorithm": type(model).__name__,
        "the type of `device`": model.device.type,
        "`total_timesteps`": total_timesteps,
        "`reset_num_timesteps`": reset_num_timesteps,
        **{f"`{name}`": value for name, value in vars(model).items() if name in (arguments | DERIVED) - OWN},
        "`VecNormalize`": {name: getattr(normalizer, name) for name in names},
        **{f"the shape of `policy.{name}`": tuple(p.shape) for name, p in model.policy.named_parameters()},
    }
    # Addresses differ
    return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in values.items()}


def every_callback(callback: BaseCallback | None) -> list[BaseCallback]:
    """
    :param callback: A callback
    :return: It and all that it calls
    """
    if callback is None:
        return []
    children = callback.callbacks if isinstance(callback, CallbackList) else [getattr(callback, "callback", None)]
    return [callback, *chain.from_iterable(every_callback(c) for c in children if isinstance(c, BaseCallback))]


def remove_first_only(callbacks: CallbackList) -> None:
    """
    :param callbacks: The callbacks of a process that is not the first one
    """
    for callback in every_callback(callbacks):
        if isinstance(callback, CallbackList):
            callback.callbacks = [c for c in callback.callbacks if not isinstance(c, FIRST_ONLY)]
        elif isinstance(callback, EventCallback) and isinstance(callback.callback, FIRST_ONLY):
            callback.callback = None


def in_turns(lists: list[list[T]]) -> list[T]:
    """
    :param lists: A list of each process
    :return: All that is in them, such that the last ones are the last ones of each
    """
    turns = zip_longest(*(([value] for value in reversed(values)) for values in lists), fillvalue=[])
    return [value for turn in turns for values in turn for value in values][::-1]


def running_statistics(model: Any) -> list[RunningMeanStd]:
    """
    :param model: A model
    :return: Those of its ``VecNormalize`` wrapper
    """
    normalizer = model.get_vec_normalize_env()
    if normalizer is None:
        return []
    of_observations = getattr(normalizer, "obs_rms", {})
    return [*(of_observations.values() if isinstance(of_observations, dict) else [of_observations]), normalizer.ret_rms]


def increment(now: RunningMeanStd, before: RunningMeanStd) -> tuple[np.ndarray, np.ndarray, float]:
    """
    :param now: Running statistics
    :param before: The same, earlier
    :return: Mean, variance and number of what was added
    """
    count = now.count - before.count
    if count <= 0:
        return before.mean, before.var, 0.0
    mean = (now.mean * now.count - before.mean * before.count) / count
    between = np.square(mean - before.mean) * before.count * count / now.count
    return mean, np.maximum(now.var * now.count - before.var * before.count - between, 0.0) / count, count


def merge(running: RunningMeanStd, before: RunningMeanStd, increments: list[tuple[np.ndarray, np.ndarray, float]]) -> None:
    """
    :param running: Become what was before with all that was added
    :param before: What was before
    :param increments: What was added in each process, as of `increment`
    """
    running.mean, running.var, running.count = before.mean, before.var, before.count
    for mean, var, count in increments:
        if count > 0:
            running.update_from_moments(mean, var, count)
