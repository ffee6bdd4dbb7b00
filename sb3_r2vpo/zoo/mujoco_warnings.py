"""MuJoCo's warnings as Python's: each is shown once, and there is no MUJOCO_LOG.TXT in the working folder."""

import warnings
from contextlib import suppress

import gymnasium as gym

#: Gymnasium's own models cause it
NOT_FOR_USERS = "settotalmass"


def take_over_warnings(env_id: str | None) -> None:
    """
    :param env_id: The environment; nothing is done, and nothing imported, if it is not one of MuJoCo's
    """
    if env_id not in gym.registry or "mujoco" not in str(gym.spec(env_id).entry_point):
        return
    with suppress(ImportError, AttributeError):
        import mujoco

        mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    if NOT_FOR_USERS not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning)
