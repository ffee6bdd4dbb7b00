"""Where a study of Optuna lives: a journal file or a database, which several machines may share."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError, ProgrammingError

#: Seconds between two signs of life of a worker in a database
HEARTBEAT_VARIABLE = "R2VPO_HEARTBEAT"
DEFAULT_HEARTBEAT = 60
#: So many signs of life must be missing until a worker is taken for dead
MISSING_HEARTBEATS = 5
#: A trial whose worker has died is begun anew this often. Not for ever: it may be what kills its workers, e.g. for memory.
MAX_RETRIES = 2

ALLOWED = "a journal (a path that ends in .log) or the URL of a database, as postgresql://user@host/database"


def heartbeat_interval() -> int:
    """
    :return: Seconds between two signs of life, from the environment variable ``R2VPO_HEARTBEAT``
    :raises ValueError: When it is no positive integer
    """
    value = os.environ.get(HEARTBEAT_VARIABLE, str(DEFAULT_HEARTBEAT))
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"the environment variable {HEARTBEAT_VARIABLE} is {value!r}: it must be a number of seconds >= 1")
    return int(value)


def grace_period() -> int:
    """
    :return: Seconds without a sign of life after which a worker is taken for dead
    """
    return MISSING_HEARTBEATS * heartbeat_interval()


def open_storage(storage: str, create: bool = True) -> BaseStorage:
    """
    :param storage: The argument ``--storage``
    :param create: Whether to begin a journal that is not there yet
    :return: The storage, which can be reached
    :raises ValueError: When it is neither a journal nor a database, or not there and not to be created
    :raises ImportError: When the driver of the database is not installed
    :raises ConnectionError: When it cannot be reached, read or written
    """
    return _open_journal(Path(storage), create) if storage.endswith(".log") else _open_database(storage)


def _open_journal(path: Path, create: bool) -> JournalStorage:
    if not create and not path.exists():
        raise ValueError(f"`--storage` is {str(path)!r}: there is no such journal")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is not there yet is created, and what cannot be written is found out now
        path.open("ab").close()
        # Optuna would write to the end of any other file
        with path.open() as file:
            if "op_code" not in file.readline(100_000) and path.stat().st_size > 0:
                raise ValueError("its first line is another")
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as e:
        raise ConnectionError(f"`--storage` is {str(path)!r}, which cannot be written ({e}): name another path") from e
    except (ValueError, KeyError, TypeError) as e:
        raise ConnectionError(f"`--storage` is {str(path)!r}, which is no journal of Optuna ({e}): name another path") from e


def _open_database(storage: str) -> RDBStorage:
    try:
        url = make_url(storage)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as e:
        raise ValueError(f"`--storage` is {storage!r}: it must be {ALLOWED}") from e
    try:
        return _connect(url)
    except ImportError as e:
        advice = "pip install 'sb3_r2vpo[postgresql]'" if url.drivername == "postgresql" else "install it with pip"
        raise ImportError(f"`--storage` is {_shown(url)}, whose driver is missing ({e.__cause__ or e}): {advice}") from e
    except DBAPIError as e:
        raise ConnectionError(
            f"`--storage` is {_shown(url)}, which cannot be used ({_one_line(e)}): "
            "check that the server runs, and host, port, user, password and the name of the database"
        ) from e
    except RuntimeError as e:
        # The tables are those of another version of Optuna, which says what to do
        raise ConnectionError(f"`--storage` is {_shown(url)}: {e}") from e


def _connect(url: URL) -> RDBStorage:
    attempts = 5
    for attempt in range(attempts):
        try:
            return DatabaseStorage(url)
        except (IntegrityError, ProgrammingError):
            # Several workers find a new database empty, and one of them was faster in creating the tables
            if attempt == attempts - 1:
                raise
            time.sleep(1)
    raise AssertionError("not reached")


class DatabaseStorage(RDBStorage):
    """
    A database in which workers give signs of life. The trial of a dead one fails, and another worker begins it anew.

    :param url: URL of the database
    """

    def __init__(self, url: URL) -> None:
        # A connection may have died while a trial was running
        engine_kwargs: dict[str, Any] = {"pool_pre_ping": True}
        if _is_postgresql(url) and "connect_timeout" not in url.query:
            # Otherwise two minutes for a host that does not answer
            engine_kwargs["connect_args"] = {"connect_timeout": 10}
        with warnings.catch_warnings():
            # Heartbeats have been experimental since 2021
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                url.render_as_string(hide_password=False),
                engine_kwargs,
                heartbeat_interval=heartbeat_interval(),
                grace_period=grace_period(),
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
            )

    def record_heartbeat(self, trial_id: int) -> None:
        """
        An outage shorter than the grace period does no harm. In Optuna the first failure would end all signs of life.

        :param trial_id: Identifier of the running trial
        """
        try:
            super().record_heartbeat(trial_id)
        except (OperationalError, optuna.exceptions.StorageInternalError) as e:
            warnings.warn(f"No sign of life could be written, trying again in {self.heartbeat_interval} s: {_one_line(e)}")


def _is_postgresql(url: URL) -> bool:
    return url.get_backend_name() == "postgresql"


def _shown(url: URL) -> str:
    return repr(url.render_as_string(hide_password=True))


def _one_line(error: Exception) -> str:
    # SQLAlchemy's own text ends with the statement and a link
    return " ".join(str(getattr(error, "orig", None) or error).split())


def find_study(storage: str, study_name: str | None) -> optuna.Study:
    """
    :param storage: The argument ``--storage``
    :param study_name: The argument ``--study-name``
    :return: A study that exists
    :raises ValueError: When it does not
    """
    opened = open_storage(storage, create=False)
    names = optuna.get_all_study_names(opened)
    if study_name not in names:
        raise ValueError(
            f"`--study-name` is {study_name!r}: it must be a study in `--storage`, which has {', '.join(names) or 'none'}"
        )
    return optuna.load_study(study_name=study_name, storage=opened)


def find_trial(study: optuna.Study, trial_id: int | None) -> optuna.trial.FrozenTrial:
    """
    :param study: The study
    :param trial_id: Number of the trial, ``None`` for the best one
    :return: The trial
    :raises ValueError: When there is none
    """
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])
    if trial_id is None:
        try:
            return study.best_trial
        except ValueError:
            raise ValueError(
                f"`--study-name` is {study.study_name!r}, a study without a complete trial, so that none of them is the best: "
                f"choose `--trial-id` from the pruned ones ({_numbers(finished)})"
            ) from None
    for trial in finished:
        if trial.number == trial_id:
            return trial
    raise ValueError(
        f"`--trial-id` is {trial_id}: it must be a finished trial of study {study.study_name!r}, "
        f"which has {_numbers(finished)}"
    )


def _numbers(trials: list[optuna.trial.FrozenTrial]) -> str:
    """Numbers as people write them: 0-7, 9."""
    ranges: list[list[int]] = []
    for trial in trials:
        if ranges and trial.number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], trial.number]
        else:
            ranges.append([trial.number])
    return ", ".join("-".join(map(str, r)) for r in ranges) or "none"
