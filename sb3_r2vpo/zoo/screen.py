"""RL Zoo's commands on a machine without a screen."""

import os
import sys
from ctypes.util import find_library


def has_screen() -> bool:
    """
    :return: Whether a window can be opened
    """
    return sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ


def render_without_screen() -> None:
    """
    Let the environments of this process render into memory. It must come before they are imported.
    """
    # pygame: classic control, Box2D
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    # MuJoCo, on the graphics card or in software
    backend = next((name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)), None)
    if backend is not None:
        os.environ.setdefault("MUJOCO_GL", backend)
    elif "MUJOCO_GL" not in os.environ:
        print("MuJoCo cannot render without a screen here: install EGL (libegl1) or OSMesa (libosmesa6)")
