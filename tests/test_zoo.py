"""RL Zoo's command line with R2VPO in it."""

import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from sb3_r2vpo.zoo import SUPPORTED, hyperparameter_file, register

pytest.importorskip("rl_zoo3")


def r2vpo(*args, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sb3_r2vpo", *args], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_train_then_continue_then_enjoy(tmp_path):
    steps = ["-n", "600", "-params", "n_steps:64", "n_envs:2", "batch_size:64", "n_epochs:2", "normalize:True"]
    logs = ["-f", "logs", "-tb", "logs/tensorboard", "--eval-freq", "300", "--eval-episodes", "1", "--seed", "1"]
    run = r2vpo("train", "--env", "CartPole-v1", "--progress", *steps, *logs, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert str(hyperparameter_file()) in run.stdout
    # What it says is where things are
    said = dict(line.split(":", 1) for line in run.stdout[run.stdout.index("Model:") :].strip().splitlines())
    assert set(said) == {
        "Model",
        "Best model",
        "VecNormalize statistics",
        "Hyperparameters",
        "Evaluations",
        "TensorBoard log",
        "Learning curve",
    }
    for path in said.values():
        assert (tmp_path / path.strip()).exists()
    assert (tmp_path / said["Learning curve"].strip()).read_bytes().startswith(b"\x89PNG")

    again = r2vpo("train", "--env", "CartPole-v1", "-i", said["Model"].strip(), *steps, *logs, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Loading pretrained agent" in again.stdout

    watched = r2vpo("enjoy", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", "600", cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert "Mean reward:" in watched.stdout


def test_other_algorithms_keep_their_own_files(tmp_path):
    run = r2vpo("train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "--eval-freq", "-1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "hyperparams/ppo.yml" in run.stdout and "('clip_range'" in run.stdout


SCRIPT = """
import sys
{imports}
sys.argv = ["train", "--algo", "r2vpo", "--env", "CartPole-v1", "-n", "64", "--eval-freq", "-1"]
train()
"""
REGISTER = "import sb3_r2vpo.zoo; sb3_r2vpo.zoo.register()"
TRAIN = "from rl_zoo3.train import train"


@pytest.mark.parametrize("imports", [f"{REGISTER}\n{TRAIN}", f"{TRAIN}\n{REGISTER}; sb3_r2vpo.zoo.register()"])
def test_two_lines_in_a_script_of_ones_own(imports, tmp_path):
    code = SCRIPT.format(imports=imports)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(hyperparameter_file()) in run.stdout
    # which our experiment manager says
    assert "Model:                   logs/r2vpo/CartPole-v1_1/CartPole-v1.zip" in run.stdout


def test_registering_brings_shimmys_environments():
    pytest.importorskip("shimmy")
    register()
    assert "GymV26Environment-v0" in gym.registry


def test_unsupported_version_of_rl_zoo(monkeypatch):
    import rl_zoo3

    monkeypatch.delattr("rl_zoo3.utils.create_test_env")
    with pytest.raises(ImportError, match=f"installed rl_zoo3 {rl_zoo3.__version__} .*: it needs {re.escape(SUPPORTED)}"):
        register()
    assert SUPPORTED.replace("rl_zoo3", "rl_zoo3[plots]") in (Path(__file__).parent.parent / "setup.cfg").read_text()


def test_importing_the_package_does_not_import_the_zoo():
    code = "import sys, sb3_r2vpo, sb3_r2vpo.zoo; print([m for m in sys.modules if m.startswith(('rl_zoo3', 'optuna'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
