"""RL Zoo's command line with R2VPO in it."""

import subprocess
import sys

import pytest

from sb3_r2vpo.zoo import hyperparameter_file

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


def test_a_clip_range_of_a_ppo_entry_is_refused(tmp_path):
    run = r2vpo("train", "--env", "CartPole-v1", "-n", "64", "-params", "clip_range:0.2", cwd=tmp_path)
    assert run.returncode != 0
    assert "R2VPO has no clipping" in run.stderr


def test_help_and_unknown_command():
    assert "train" in r2vpo("--help").stdout
    unknown = r2vpo("tarin")
    assert unknown.returncode != 0 and "unknown command 'tarin', choose from: train, enjoy" in unknown.stderr


def test_registering_twice_is_harmless():
    code = "import sb3_r2vpo.zoo as zoo; zoo.register(); zoo.register(); from rl_zoo3 import ALGOS; print(ALGOS['r2vpo'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "sb3_r2vpo.r2vpo.R2VPO" in run.stdout, run.stderr


def test_importing_the_package_does_not_import_the_zoo():
    code = "import sys, sb3_r2vpo, sb3_r2vpo.zoo; print([m for m in sys.modules if m.startswith(('rl_zoo3', 'optuna'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
