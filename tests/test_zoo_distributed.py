"""``torchrun ... -m sb3_r2vpo train``: one run of RL Zoo in several processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sb3_r2vpo import R2VPO

SETTINGS = ["n_envs:2", "n_steps:32", "batch_size:32", "n_epochs:1", "normalize:True"]


def train(folder, *arguments, check=True):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "sb3_r2vpo", "train", "-f", str(folder / "logs"), *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert not check or run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_one_run_of_the_zoo_in_two_processes(tmp_path):
    arguments = ["--env", "CartPole-v1", "-n", "512", "--eval-freq", "256", "--eval-episodes", "1", "-params", *SETTINGS]
    output = train(tmp_path, *arguments, "-tb", str(tmp_path / "tensorboard"), "--save-freq", "256")
    assert output.count("Loading hyperparameters from") == output.count("Learning curve:") == 1
    (run,) = (tmp_path / "logs" / "r2vpo").iterdir()
    assert len(list((tmp_path / "tensorboard").rglob("events.*"))) == 1
    # Of the first process only
    assert sorted(path.name for path in run.glob("*.monitor.csv")) == ["0.monitor.csv", "1.monitor.csv"]
    # By the timesteps of all
    assert {"rl_model_256_steps.zip", "rl_model_512_steps.zip"} <= {path.name for path in run.glob("*.zip")}
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [256, 512]
    assert R2VPO.load(run / "CartPole-v1.zip").num_timesteps == 512


@pytest.mark.slow
def test_a_run_in_two_processes_is_resumed_in_two(tmp_path):
    train(tmp_path, "--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", "-params", *SETTINGS)
    output = train(tmp_path, "--resume", "--env", "CartPole-v1", "-n", "512")
    (run,) = (tmp_path / "logs" / "r2vpo").iterdir()
    assert output.count("Resuming from") == 1
    assert R2VPO.load(run / "CartPole-v1.zip").num_timesteps == 512


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, error", [(["--algo", "ppo"], "`--algo` is 'ppo'"), (["--optimize"], "`--optimize` is not for torchrun")]
)
def test_what_is_not_for_torchrun_says_so(tmp_path, arguments, error):
    assert error in train(tmp_path, "--env", "CartPole-v1", *arguments, check=False)
    assert not os.listdir(tmp_path)
