"""Checkpoints from which a training goes on as if it had never ended."""

import io
import json
import pickle
import re
import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat, configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_r2vpo.arguments import check_integer
from sb3_r2vpo.files import check_model_file, remove_partial_files, write_file
from sb3_r2vpo.workers import own_rank

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)
SelfCallback = TypeVar("SelfCallback", bound="ResumableCheckpointCallback")

#: What a checkpoint has besides the entries of SB3's zip file
STATISTICS = "vecnormalize.pkl"
PLACE = "place.json"
#: Without `save_freq`, in seconds
SAVE_EVERY = 600.0
#: The same for the first one: what takes minutes can go on too
FIRST_SAVE_AFTER = 60.0


class Place(NamedTuple):
    """
    Where a training was between two rollouts.

    :param num_timesteps: Number of timesteps
    :param time: Seconds since the epoch: what was logged later, will be logged again
    :param statistics: The ``VecNormalize`` wrapper, pickled
    """

    num_timesteps: int
    time: float
    statistics: bytes | None


class ResumableCheckpointCallback(BaseCallback):
    """
    Keeps checkpoints, and resumes from the newest one: model, λ, optimizer, timesteps, schedules, ``VecNormalize``
    statistics and TensorBoard's curve go on. Environments are reset, and get seeds of their own::

        with ResumableCheckpointCallback("checkpoints") as checkpoints:
            model = checkpoints.resume(R2VPO, env) or R2VPO("MlpPolicy", env)
            model.learn(10**6 - model.num_timesteps, checkpoints, reset_num_timesteps=model.num_timesteps == 0)

    In the ``with`` block an error, Ctrl+C or SIGTERM (from Slurm, Kubernetes, docker) leaves a checkpoint too, of the
    model as it is, with statistics and timesteps from before the rollout that was not finished. Without it
    the callback works, but only saves now and then.

    A checkpoint is a model file like any other, with the statistics in it. It is written between two rollouts.

    :param save_path: Path to the folder where the checkpoints are, for nothing but this training
    :param save_freq: Save every ``save_freq`` call of the callback (i.e. ``save_freq * n_envs`` timesteps), at the end of
        the rollout. If None, after a minute, and then every ten.
    :param keep: How many of the newest checkpoints are kept. If None, all.
    :param name_prefix: Common prefix to the saved models
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving model checkpoint
    """

    def __init__(
        self,
        save_path: str | Path,
        save_freq: int | None = None,
        keep: int | None = 3,
        name_prefix: str = "rl_model",
        verbose: int = 0,
    ):
        super().__init__(verbose)
        for name, value in (("save_freq", save_freq), ("keep", keep)):
            if value is not None:
                check_integer(name, value, minimum=1)
        self.save_path = Path(save_path)
        self.save_freq = save_freq
        self.keep = keep
        self.name_prefix = name_prefix
        self._place: Place | None = None
        self._saves = 0
        self._saved_at = time.monotonic()

    def checkpoints(self) -> list[Path]:
        """
        :return: The files in the folder that have the name of a checkpoint, the newest one last
        """
        return sorted((path for path in self.save_path.glob("*.zip") if self._steps_of(path) >= 0), key=self._steps_of)

    def _steps_of(self, path: Path) -> int:
        """
        :param path: A file
        :return: The timesteps in its name, -1 when it is not the name of a checkpoint
        """
        match = re.fullmatch(re.escape(self.name_prefix) + r"_(\d+)_steps\.zip", path.name)
        return -1 if match is None else int(match[1])

    def newest(self) -> Path | None:
        """
        :return: The newest checkpoint that is not damaged
        """
        for path in reversed(self.checkpoints()):
            try:
                check_model_file(path)
            except ValueError as e:
                warnings.warn(f"{e}, so it is not resumed from")
            else:
                if is_checkpoint(path):
                    return path
        return None

    def resume(self, algorithm: type[Algorithm], env: VecEnv, **kwargs: Any) -> Algorithm | None:
        """
        :param algorithm: The class of the model
        :param env: The environment, wrapped as it was
        :param kwargs: Arguments of its ``load``
        :return: The model of the newest checkpoint, None when there is no checkpoint
        :raises ValueError: When only one of checkpoint and environment has ``VecNormalize`` statistics
        """
        path = self.newest()
        return None if path is None else load_checkpoint(path, algorithm, env, **kwargs)

    def _init_callback(self) -> None:
        remove_partial_files(self.save_path)

    def _on_training_start(self) -> None:
        newest = self.newest()
        if newest is not None and self._steps_of(newest) > self.model.num_timesteps:
            raise ValueError(
                f"`save_path` is {str(self.save_path)!r}, where {newest.name} is ahead of this training "
                f"({self.model.num_timesteps} timesteps): resume it, or give another folder"
            )
        self._saves = 0 if self.save_freq is None else self._saves_due()
        self._saved_at = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._place = place_of(self.model)
        due = self._saves_due()
        if due > self._saves:
            self._saves = due
            try:
                self.save()
            except OSError as e:
                # A disk can have room again
                warnings.warn(f"Training goes on without this checkpoint: {e.strerror}")

    def _saves_due(self) -> int:
        """
        :return: A number that grows when there is something to save
        """
        if self.save_freq is not None:
            return self.n_calls // self.save_freq
        wait = FIRST_SAVE_AFTER if self._saves == 0 else SAVE_EVERY
        return self._saves + (time.monotonic() - self._saved_at >= wait)

    def _on_training_end(self) -> None:
        if self._place is None:
            # There was nothing left to do
            return
        self._place = place_of(self.model)
        self.save()
        self._place = None

    def save(self) -> Path:
        """
        :return: The checkpoint of the model, with statistics and timesteps from between the last two rollouts
        :raises OSError: When it cannot be written
        """
        assert self._place is not None, "there is nothing to save before training"
        path = self.save_path / f"{self.name_prefix}_{self._place.num_timesteps}_steps.zip"
        write_file(path, pack(self.model, self._place))
        self._saved_at = time.monotonic()
        if self.verbose >= 2:
            print(f"Saving model checkpoint to {path}")
        if self.keep is not None:
            # Not what SB3's `CheckpointCallback` has saved under the same name
            own = [file for file in self.checkpoints() if self._steps_of(file) <= self._steps_of(path) and is_checkpoint(file)]
            for old in own[: -self.keep]:
                old.unlink(missing_ok=True)
        return path

    def __enter__(self: SelfCallback) -> SelfCallback:
        # Python only lets the main thread have handlers
        self._is_main_thread = threading.current_thread() is threading.main_thread()
        if self._is_main_thread:
            self._handler: Callable | int | None = signal.signal(signal.SIGTERM, _exit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._is_main_thread:
            signal.signal(signal.SIGTERM, self._handler)
        if error is None or self._place is None:
            return
        put_back(self.model, self._place)
        what = f"Training was ended by {kind.__name__ if kind else error} after {self._place.num_timesteps} timesteps."
        try:
            print(f"{what} The model is saved in {self.save()}")
        except OSError as e:
            print(f"{what} The model could not be saved: {e.strerror}. The newest checkpoint is {self.newest()}")
        self._place = None


def _exit(signal_number: int, frame: Any) -> NoReturn:
    """What ends Python as an error does, with the exit status that shells give for a signal."""
    raise SystemExit(128 + signal_number)


def place_of(model: BaseAlgorithm) -> Place:
    """
    :param model: A model, between two rollouts
    :return: Where its training is
    """
    normalizer = model.get_vec_normalize_env()
    return Place(model.num_timesteps, time.time(), None if normalizer is None else pickle.dumps(normalizer))


def put_back(model: BaseAlgorithm, place: Place) -> None:
    """
    :param model: A model in training
    :param place: Where it was before; its timesteps and statistics are put back there
    """
    model.num_timesteps = place.num_timesteps
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and place.statistics is not None:
        before = pickle.loads(place.statistics)
        for name in ("obs_rms", "ret_rms"):
            if hasattr(before, name):
                setattr(normalizer, name, getattr(before, name))


def pack(model: BaseAlgorithm, place: Place) -> bytes:
    """
    :param model: The model
    :param place: Where its training is
    :return: The checkpoint
    """
    buffer = io.BytesIO()
    model.save(buffer)
    has_tensorboard = any(isinstance(output, TensorBoardOutputFormat) for output in model.logger.output_formats)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(PLACE, json.dumps({"time": place.time, "log_dir": model.logger.dir if has_tensorboard else None}))
        if place.statistics is not None:
            archive.writestr(STATISTICS, place.statistics)
    return buffer.getvalue()


def is_checkpoint(path: str | Path) -> bool:
    """
    :param path: A model file
    :return: Whether a training can go on from it
    """
    return part_of(path, PLACE) is not None


def part_of(path: str | Path, name: str) -> bytes | None:
    """
    :param path: A model file
    :param name: Of a file in it
    :return: What is in that; ``None`` where there is no such file
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.read(name) if name in archive.namelist() else None


def statistics_of(path: str | Path) -> VecNormalize | None:
    """
    :param path: A model file
    :return: The ``VecNormalize`` wrapper that is in it, still without environments, if it is a checkpoint and has one
    """
    statistics = part_of(path, STATISTICS)
    return None if statistics is None else pickle.loads(statistics)


def time_of(path: str | Path) -> float:
    """
    :param path: A checkpoint
    :return: When it was where it is, in seconds since the epoch
    """
    return stored_place(path)["time"]


def stored_place(path: str | Path) -> dict[str, Any]:
    """
    :param path: A checkpoint
    :return: When and where it was made: ``time`` and ``log_dir``
    :raises ValueError: When it is no checkpoint
    """
    place = part_of(path, PLACE)
    if place is None:
        raise ValueError(f"{path} is no checkpoint of a `ResumableCheckpointCallback`")
    return json.loads(place)


def load_checkpoint(path: str | Path, algorithm: type[Algorithm], env: VecEnv, **kwargs: Any) -> Algorithm:
    """
    :param path: A checkpoint
    :param algorithm: The class of the model
    :param env: The environment, wrapped as it was
    :param kwargs: Arguments of its ``load``
    :return: The model, with its statistics in the environment
    :raises ValueError: When it is no checkpoint, or only one of it and the environment has ``VecNormalize`` statistics
    """
    place, statistics = stored_place(path), part_of(path, STATISTICS)
    model = algorithm.load(path, env, **kwargs)
    if (statistics is None) != (model.get_vec_normalize_env() is None):
        has, has_not = ("environment", path) if statistics is None else (path, "environment")
        raise ValueError(f"{has} has `VecNormalize` statistics, {has_not} has none: wrap the environment as it was")
    put_back(model, Place(model.num_timesteps, place["time"], statistics))
    if model.seed is not None:
        # Not once more the random numbers from the start of training
        model.set_random_seed((model.seed + model.num_timesteps) % 2**32)
    if place["log_dir"] is not None and own_rank() == 0:
        continue_tensorboard(model, place["log_dir"])
    return model


def continue_tensorboard(model: BaseAlgorithm, log_dir: str) -> None:
    """
    :param model: A resumed model
    :param log_dir: The folder in which its curve goes on; what was logged after the checkpoint is hidden
    """
    from torch.utils.tensorboard import SummaryWriter

    SummaryWriter(log_dir, purge_step=model.num_timesteps + 1).close()
    model.set_logger(configure(log_dir, ["stdout", "tensorboard"] if model.verbose >= 1 else ["tensorboard"]))
