"""Finding a trained agent, or saying what there is instead."""

import tempfile
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path as get_zoo_model_path

from sb3_r2vpo.checkpoints import STATISTICS, part_of
from sb3_r2vpo.files import check_model_file

#: With the statistics of the checkpoint that is shown; gone when Python ends
_statistics: tempfile.TemporaryDirectory | None = None


def get_model_path(exp_id: int, folder: str, algo: str, env_name: EnvironmentName, *which: Any) -> tuple[str, str, str]:
    """
    RL Zoo's function of this name, which its commands call. Of a checkpoint the statistics in it are shown.

    :param exp_id: Number of the run, 0 for the latest
    :param folder: Log folder
    :param algo: Name of the algorithm
    :param env_name: Name of the environment
    :param which: RL Zoo's arguments about the best model and checkpoints
    :return: Prefix for videos, path of the model, folder of the run
    :raises ValueError: When there is no such agent
    """
    try:
        prefix, path, run = get_zoo_model_path(exp_id, folder, algo, env_name, *which)
    except (AssertionError, ValueError) as e:
        runs = sorted(path.name for path in Path(folder, algo).glob("*_*") if path.is_dir())
        there = f"it holds {', '.join(runs)}" if runs else "it holds no run"
        raise ValueError(f"{e}. `--folder` is {folder!r} and `--algo` is {algo!r}: {there}") from e
    take_statistics(path)
    return prefix, path, run


def take_statistics(path: str) -> None:
    """
    :param path: The model that is shown
    """
    global _statistics
    _statistics = None
    if (statistics := part_of(path, STATISTICS)) is not None:
        _statistics = tempfile.TemporaryDirectory()
        Path(_statistics.name, STATISTICS).write_bytes(statistics)


def statistics_folder() -> str | None:
    """
    :return: The folder of the ``VecNormalize`` statistics that belong to the model, where it is a checkpoint that has some
    """
    return None if _statistics is None else _statistics.name


def check_trained_agent(path: str | None) -> None:
    """
    :param path: The agent to continue with
    :raises ValueError: When there is no such file, or it is damaged
    """
    if path is None:
        return
    if not (path.endswith(".zip") and Path(path).is_file()):
        raise ValueError(f"`--trained-agent` is {path!r}: it must be the .zip file of a trained agent")
    check_model_file(path)
