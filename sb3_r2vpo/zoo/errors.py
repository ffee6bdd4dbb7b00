"""Which errors end in one sentence on the command line, and which in a traceback."""

import errno
import traceback
from types import FrameType, TracebackType

#: These packages check what the user passes, and say what is wrong with it
CHECKING = ("sb3_r2vpo", "rl_zoo3", "stable_baselines3", "sb3_contrib", "huggingface_sb3")
#: by raising one of these
CHECKED = (ValueError, TypeError, AssertionError, ImportError, ConnectionError)
#: These have errors of their own, which are about what is not there: an environment, a package, a token, the network
TELLING = ("gymnasium", "yaml", "huggingface_hub", "httpx", "httpx2", "requests")
#: Between the command line and a user's own environment, policy or callback
BETWEEN = (*CHECKING, "gymnasium", "torch", "numpy", "runpy", "contextlib", "multiprocessing")
#: The disk is full, or what a user may have of it
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
#: From here on it is no longer about what the user passed
BEYOND_SETUP = ("learn", "hyperparameters_optimization")


def is_for_the_user(error: Exception) -> bool:
    """
    :param error: What has ended one of RL Zoo's commands
    :return: Whether its message alone tells the user what to do. Not so for what a defect raises: a user's own
        environment, an expression that fails inside one of the packages, anything else once training has begun
    """
    from sb3_r2vpo.nonfinite import NonFiniteObservationError, NonFiniteUpdateError

    if isinstance(error, (NonFiniteObservationError, NonFiniteUpdateError)):
        return True
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    if any(frame.f_code.co_name in BEYOND_SETUP for frame, _ in traceback.walk_tb(error.__traceback__)):
        return False
    if type(error).__module__.split(".")[0] in TELLING:
        return True
    if _package_of(error) == "gymnasium":
        # Arguments that do not fit an environment, rather than what fails inside of it
        return error.__context__ is not None and _package_of(error.__context__) == "gymnasium"
    if _package_of(error) not in CHECKING:
        return False
    if isinstance(error, FileNotFoundError):
        return True
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    # A check is a statement of its own, a defect is not
    return isinstance(error, CHECKED) and line.startswith(("raise ", "assert "))


def short_traceback(error: Exception) -> TracebackType | None:
    """
    :param error: What has ended one of RL Zoo's commands
    :return: Its traceback from the first call of something that a user has written, the whole one when there is none
    """
    users = error.__traceback__
    while users is not None and _package_in(users.tb_frame) in BETWEEN:
        users = users.tb_next
    return users or error.__traceback__


def _package_of(error: BaseException) -> str:
    """
    :param error: An error
    :return: The package that has raised it
    """
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return _package_in(innermost)


def _package_in(frame: FrameType) -> str:
    return (frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or "").split(".")[0]


def message_of(error: Exception) -> str:
    """
    :param error: An error for the user
    :return: What it says
    """
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename} does not exist"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return str(error.strerror)
    if type(error).__module__.startswith("httpx"):
        return f"The Hugging Face Hub cannot be reached ({error})"
    return str(error)
