import subprocess
import sys

import pytest

pytest.importorskip("mujoco")

CODE = """
import gymnasium as gym
import mujoco
from sb3_r2vpo.zoo.mujoco_warnings import take_over_warnings

take_over_warnings("HalfCheetah-v5")
for _ in range(2):
    gym.make("HalfCheetah-v5")
for _ in range(2):
    mujoco.get_mju_user_warning()("unstable")
"""


def test_mujoco_warns_once_and_writes_no_file(tmp_path):
    run = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.iterdir()) and "settotalmass" not in run.stdout + run.stderr
    assert run.stderr.count("RuntimeWarning: MuJoCo: unstable") == 1
