"""The hyperparameters of an environment in RL Zoo: schedules by name, and checks before anything is created."""

import difflib
import inspect
from typing import Any

from rl_zoo3.utils import ALGOS as ZOO_ALGOS
from rl_zoo3.utils import SimpleLinearSchedule

from sb3_r2vpo.r2vpo import R2VPO

#: The arguments of R2VPO that can be a schedule
SCHEDULES = ("learning_rate", "clip_range_vf", "target_var", "var_coef")
#: What RL Zoo itself takes out of the hyperparameters of an environment
ZOO_HYPERPARAMETERS = {
    "n_envs",
    "n_timesteps",
    "normalize",
    "frame_stack",
    "env_wrapper",
    "vec_env_wrapper",
    "env_kwargs",
    "monitor_kwargs",
    "callback",
}
#: These arguments of R2VPO are RL Zoo's to pass
COMMAND_LINE_ARGUMENTS = {"seed", "verbose", "device", "tensorboard_log"}
R2VPO_HYPERPARAMETERS = (
    set(inspect.signature(R2VPO.__init__).parameters) - {"self", "env", "_init_setup_model"} - COMMAND_LINE_ARGUMENTS
)


def named_schedules(hyperparams: dict[str, Any]) -> dict[str, SimpleLinearSchedule]:
    """
    :param hyperparams: The hyperparameters as they are written
    :return: The schedules among them
    :raises ValueError: When a string is not the name of a schedule
    """
    return {
        key: linear_schedule(key, value)
        for key, value in hyperparams.items()
        if key in SCHEDULES and isinstance(value, str) and not is_automatic(key, value)
    }


def is_automatic(name: str, value: str) -> bool:
    """
    :param name: Name of an argument
    :param value: What the hyperparameters have for it
    :return: Whether that is a value of the argument itself: ``"auto"``, and for ``var_coef`` ``"auto_<initial value>"``
    """
    return (name == "target_var" and value == "auto") or (name == "var_coef" and value.startswith("auto"))


def linear_schedule(name: str, value: str) -> SimpleLinearSchedule:
    """
    :param name: Name of an argument
    :param value: What the hyperparameters have for it, e.g. ``"lin_0.02"``
    :return: The schedule from that value to zero
    :raises ValueError: When the string is something else
    """
    kind, _, initial_value = value.partition("_")
    try:
        return {"lin": SimpleLinearSchedule}[kind](initial_value)
    except (KeyError, ValueError):
        raise ValueError(
            f"`{name}` is {value!r}: it must be a number (in YAML with a point, 1.0e-3, otherwise it is text) or "
            "'lin_<initial value>', e.g. 'lin_0.02', to fall from there to zero"
            + {"var_coef": ", or 'auto' or 'auto_<initial value>'", "target_var": ", or 'auto'"}.get(name, "")
        ) from None


def check_names(algo: str, names: set[str]) -> None:
    """
    :param algo: R2VPO or one of its variants, whose arguments are the same
    :param names: Names of the hyperparameters of an environment
    :raises ValueError: When one is missing or unknown
    """
    known = ZOO_HYPERPARAMETERS | R2VPO_HYPERPARAMETERS
    for name in sorted(names - known):
        if name in COMMAND_LINE_ARGUMENTS:
            raise ValueError(f"`{name}` is no hyperparameter: pass --{name.replace('_', '-')} {name.upper()} instead")
        similar = difflib.get_close_matches(name, known, n=1)
        suggestion = f"did you mean `{similar[0]}`?" if similar else f"there are {', '.join(sorted(known - {'clip_range'}))}"
        raise ValueError(f"`{name}` is not a hyperparameter of {algo}: {suggestion}")
    for name in ("policy", "n_timesteps"):
        if name not in names:
            raise ValueError(f"`{name}` is missing in the hyperparameters of the environment: RL Zoo needs it there")


def check_values(algo: str, arguments: dict[str, Any], n_envs: int) -> None:
    """
    Before there are environments and a folder for the run.

    :param algo: R2VPO or one of its variants
    :param arguments: Its arguments
    :param n_envs: Number of environments
    :raises ValueError: When one is out of its range
    """
    model: Any = ZOO_ALGOS[algo](env=None, **arguments, _init_setup_model=False)  # type: ignore[call-arg]
    model.n_envs = n_envs
    model._check_arguments()
