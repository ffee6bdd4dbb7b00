"""RL Zoo's commands on a machine without a screen."""

import os
import sys
from ctypes.util import find_library

import gymnasium as gym


def has_screen() -> bool:
    """
    :return: Whether a window can be opened
    """
    return sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ


def render_without_screen(env_id: str | None) -> None:
    """
    Let the environments of this process render into memory. It must come before they are imported.

    :param env_id: The environment
    :raises ImportError: When that is one of MuJoCo's, and there is nothing to render it with
    """
    # pygame: classic control, Box2D
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    # MuJoCo, on the graphics card or in software
    backend = next((name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)), None)
    if backend is not None:
        os.environ.setdefault("MUJOCO_GL", backend)
    elif "MUJOCO_GL" not in os.environ and env_id in gym.registry and "mujoco" in str(gym.spec(env_id).entry_point):
        raise ImportError(f"{env_id} cannot be rendered without a screen here: install EGL (libegl1) or OSMesa (libosmesa6)")
