"""
``r2vpo train --resume``: an interrupted run goes on in its own folder, with the arguments that it was started with.

RL Zoo's own ``-i`` begins a new run with a trained agent. A resumed run is one with ``-i`` and its own checkpoint,
whose experiment manager knows that the folder is there already.
"""

import argparse
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common.monitor import Monitor

from sb3_r2vpo.checkpoints import ResumableCheckpointCallback
from sb3_r2vpo.files import write_file
from sb3_r2vpo.zoo import ALGO
from sb3_r2vpo.zoo.arguments import is_search, take

#: Of a run, beside RL Zoo's files of its configuration
ARGUMENTS = "arguments.json"
#: ``--resume`` with no folder
LATEST = ""


def take_resume(arguments: list[str], folder: str) -> tuple[list[str], Path | None]:
    """
    :param arguments: Arguments of RL Zoo's ``train``
    :param folder: Where runs are by default
    :return: With ``--resume`` those that the run was started with, then its checkpoint, then the other ones given here,
        which count more; and the folder of the run. Otherwise the same arguments
    :raises ValueError: When there is nothing to resume
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const=LATEST)
    given, others = parser.parse_known_args(arguments)
    if given.resume is None:
        return arguments, None
    if take(("-i", "--trained-agent"), arguments)[0] is not None:
        raise ValueError("`--resume` and `--trained-agent` do not go together: it begins a new run")
    if is_search(arguments):
        raise ValueError(
            "`--resume` and `--optimize-hyperparameters` do not go together: a study goes on whenever its command is given"
        )
    run = latest_run(others, folder) if given.resume == LATEST else Path(given.resume)
    checkpoint = ResumableCheckpointCallback(run).newest()
    file = run_config(run) / ARGUMENTS
    if checkpoint is None or not file.exists():
        raise ValueError(f"There is nothing to resume: {run} has no checkpoint")
    return [*json.loads(file.read_text()), "-i", str(checkpoint), *others], run


def latest_run(arguments: list[str], folder: str) -> Path:
    """
    :param arguments: Arguments of RL Zoo's ``train``
    :param folder: Where runs are by default
    :return: The folder of the latest run
    :raises ValueError: When there is none
    """
    env_id, algo, log_folder = (take(names, arguments)[0] for names in (("--env",), ("--algo",), ("-f", "--log-folder")))
    if env_id is None:
        raise ValueError(
            "There is nothing to resume: `--resume` must be followed by the folder of a run, or --env say of what"
        )
    runs, name = Path(log_folder or folder, algo or ALGO), EnvironmentName(env_id)
    number = get_latest_run_id(str(runs), name)
    if number == 0:
        raise ValueError(f"There is nothing to resume: {runs} has no run of {env_id}")
    return runs / f"{name}_{number}"


def run_config(run: Path) -> Path:
    """
    :param run: Folder of a run
    :return: RL Zoo's folder of its configuration in it, which is named after the environment
    """
    return next((file.parent for file in run.glob("*/args.yml")), run)


def save_arguments(config: Path, arguments: list[str], **decided: Any) -> None:
    """
    :param config: Folder of the configuration of a run
    :param arguments: Arguments of RL Zoo's ``train``
    :param decided: Values of those that the run has found for itself
    """
    found = [word for name, value in decided.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    write_file(config / ARGUMENTS, json.dumps([*arguments, *found]).encode())


def save_timesteps(config: Path, n_timesteps: int) -> None:
    """
    A run that was resumed for longer is resumed for as long the next time.

    :param config: Folder of the configuration of a run
    :param n_timesteps: How long
    """
    _, others = take(("-n", "--n-timesteps"), json.loads((config / ARGUMENTS).read_text()))
    save_arguments(config, others, n_timesteps=n_timesteps)


def resumed_hyperparameters(config: Path, given: dict[str, Any]) -> dict[str, Any]:
    """
    The hyperparameters of a run as RL Zoo has saved them: the file that they came from, and the best trial of a study, may be
    other ones by now.

    :param config: Folder of the configuration of a run
    :param given: What the command line says of them
    :return: Its hyperparameters
    :raises ValueError: When they are not what they were; the number of timesteps may change
    """
    # RL Zoo saves Python objects, and loads them like this
    before = dict(yaml.load((config / "config.yml").read_text(), Loader=yaml.UnsafeLoader))
    changed = [key for key, value in given.items() if key != "n_timesteps" and before.get(key) != value]
    if changed:
        changes = ", ".join(f"`{key}` is {given[key]!r} and was {before.get(key)!r}" for key in changed)
        raise ValueError(f"A resumed run keeps its hyperparameters, but {changes}: begin a new run with its agent (-i)")
    return {**before, **given}


def check_same_evaluation(run: Path, n_episodes: int) -> None:
    """
    :param run: Folder of a run
    :param n_episodes: How many episodes an evaluation is to have
    :raises ValueError: When those that are there have another number, which one table cannot hold
    """
    file = run / "evaluations.npz"
    if not file.exists():
        return
    with np.load(file) as evaluations:
        before = evaluations["results"].shape[1]
    if n_episodes != before:
        raise ValueError(f"`--eval-episodes` is {n_episodes} and was {before}: a resumed run keeps it")


def keep_episodes_until(run: Path, time: float) -> None:
    """
    Keep what monitor files have of the time before a checkpoint. The names that SB3 gives them are free afterwards.

    :param run: Folder of a run
    :param time: When the checkpoint was taken, in seconds since the epoch
    """
    for file in run.glob(f"*{Monitor.EXT}"):
        first_line, _, table = file.read_text().partition("\n")
        try:
            start = json.loads(first_line[1:])["t_start"]
            rows = list(csv.reader(io.StringIO(table)))
            episodes = [row for row in rows[1:] if len(row) == len(rows[0]) and start + float(row[2]) <= time]
        except (ValueError, KeyError, IndexError):
            # Killed when the file was new
            episodes = []
        if episodes:
            content = io.StringIO()
            csv.writer(content, lineterminator="\n").writerows([rows[0], *episodes])
            name = file.name if "until" in file.name else f"until_{start:.6f}.{file.name}"
            write_file(file.with_name(name), f"{first_line}\n{content.getvalue()}".encode())
            if name == file.name:
                continue
        file.unlink()


def lock_run(run: Path) -> io.TextIOWrapper | None:
    """
    :param run: Folder of a run
    :return: A lock, which lasts as long as the object and the process; None where the system has none
    :raises ValueError: When another process trains there
    """
    try:
        import fcntl
    except ImportError:
        return None
    lock = open(run / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise ValueError(f"{run} is still being trained by another process") from e
    except OSError:
        # Some shared file systems have none
        os.unlink(lock.name)
    return lock
