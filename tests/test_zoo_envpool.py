"""EnvPool in RL Zoo's command line."""

import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

pytest.importorskip("envpool")
pytest.importorskip("rl_zoo3")

import rl_zoo3.exp_manager

from sb3_r2vpo import R2VPO, EnvPoolVecEnv
from sb3_r2vpo.zoo import envpool
from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager

FEW_STEPS = ["-n", "600", "-params", "n_steps:64", "n_envs:2", "batch_size:64", "n_epochs:2", "normalize:True"]


def r2vpo(*args, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sb3_r2vpo", *args], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_train_then_enjoy(tmp_path):
    env = ["--env", "CheetahRun-v1"]
    evaluation = ["--eval-freq", "300", "--eval-episodes", "1", "--env-kwargs", "max_episode_steps:100"]
    run = r2vpo("train", "--vec-env", "envpool", *env, *FEW_STEPS, *evaluation, "-f", "logs", cwd=tmp_path)
    assert run.returncode == 0, run.stderr

    run_folder = tmp_path / "logs" / "r2vpo" / "CheetahRun-v1_1"
    # In 320 steps of each: 100, 200, 300 of the one, (50), 150, 250 of the other, whose first is in no statistics
    assert load_results(str(run_folder))["l"].tolist() == [100] * 5
    for name in (
        "CheetahRun-v1.zip",
        "best_model.zip",
        "evaluations.npz",
        "learning_curve.png",
        "CheetahRun-v1/vecnormalize.pkl",
    ):
        assert (run_folder / name).exists(), name
    arguments = yaml.load((run_folder / "CheetahRun-v1" / "args.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert arguments["vec_env"] == "envpool"

    resumed = r2vpo("train", *env, "--resume", "-f", "logs", "-n", "800", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert R2VPO.load(run_folder / "CheetahRun-v1.zip").num_timesteps == 896
    # 128 steps more of each, which begin staggered again
    assert load_results(str(run_folder))["l"].tolist() == [100] * 6

    watched = r2vpo("enjoy", *env, "-f", "logs", "-n", "250", "--reward-log", "rewards", cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert "2 Episodes" in watched.stdout and "Mean episode length: 100.00" in watched.stdout
    assert len(load_results(str(tmp_path / "rewards"))) == 2


def test_atari(tmp_path):
    few_steps = ["-n", "64", "-params", "n_steps:16", "n_envs:2", "batch_size:16", "n_epochs:1"]
    evaluation = ["--eval-freq", "64", "--eval-episodes", "1", "--eval-env-kwargs", "max_episode_steps:50"]
    run = r2vpo("train", "--vec-env", "envpool", "--env", "Breakout-v5", *few_steps, *evaluation, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    model = R2VPO.load(tmp_path / "logs" / "r2vpo" / "Breakout-v5_1" / "Breakout-v5.zip")
    assert model.policy_class is ActorCriticCnnPolicy and model.observation_space.shape == (4, 84, 84)

    resumed = r2vpo("train", "--env", "Breakout-v5", "--resume", "-n", "96", *evaluation, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    watched = r2vpo("enjoy", "--env", "Breakout-v5", "-n", "100", "--env-kwargs", "max_episode_steps:50", cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert "Atari Episode Length 50" in watched.stdout


def test_without_the_argument_it_says_what_is_missing(tmp_path):
    run = r2vpo("train", "--env", "CheetahRun-v1", *FEW_STEPS, cwd=tmp_path)
    assert run.returncode != 0
    assert "CheetahRun-v1 exists in EnvPool only: r2vpo train --vec-env envpool" in run.stderr


def test_unknown_environment():
    run = r2vpo("train", "--vec-env", "envpool", "--env", "CheetahRn-v1")
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].startswith("r2vpo: `env_id` is 'CheetahRn-v1'")


@pytest.mark.parametrize("vec_env", [["--vec-env", "envpool"], ["--vec-env=envpool"]])
def test_only_its_own_argument_is_taken_away(monkeypatch, vec_env):
    monkeypatch.setattr("rl_zoo3.exp_manager.ExperimentManager", None)
    others = ["--env", "CartPole-v1", "--eval-freq", "-1", "-P", "-params", "n_envs:2", "normalize:True"]
    assert envpool.prepare_training([*others[:2], *vec_env, *others[2:]]) == others
    assert rl_zoo3.exp_manager.ExperimentManager is envpool.EnvPoolExperimentManager


def test_other_vec_envs_are_left_to_rl_zoo(monkeypatch):
    monkeypatch.setattr("rl_zoo3.exp_manager.ExperimentManager", None)
    arguments = ["--vec-env", "subproc", "--env", "CartPole-v1"]
    assert envpool.prepare_training(arguments) == arguments
    assert rl_zoo3.exp_manager.ExperimentManager is None


def test_gymnasiums_own_environments_keep_their_entry():
    entry = gym.spec("HalfCheetah-v5")
    envpool.register_env(["--env", "HalfCheetah-v5"])
    assert gym.spec("HalfCheetah-v5") is entry


def test_training_and_evaluation_environments(tmp_path):
    manager = envpool.EnvPoolExperimentManager(
        SimpleNamespace(), "r2vpo", "HalfCheetah-v5", str(tmp_path), eval_env_kwargs=dict(max_episode_steps=7)
    )
    manager.normalize = True
    env, eval_env = manager.create_envs(3), manager.create_envs(2, eval_env=True)
    assert isinstance(env, VecNormalize) and env.training and env.num_envs == 3
    assert isinstance(eval_env, VecNormalize) and not eval_env.training and eval_env.num_envs == 2
    assert isinstance(env.unwrapped, EnvPoolVecEnv) and isinstance(eval_env.unwrapped, EnvPoolVecEnv)
    assert env.get_attr("max_episode_steps", 0) == [1000] and eval_env.get_attr("max_episode_steps", 0) == [7]
    monitor_files = list(tmp_path.rglob("*monitor.csv"))
    assert len(monitor_files) == 1, "the evaluation is no training episode"


def test_training_environments_are_staggered(tmp_path):
    limit = dict(max_episode_steps=6)
    manager = envpool.EnvPoolExperimentManager(
        SimpleNamespace(), "r2vpo", "HalfCheetah-v5", str(tmp_path), env_kwargs=limit, eval_env_kwargs=limit
    )
    env, eval_env = manager.create_envs(3), manager.create_envs(3, eval_env=True)
    assert first_ends(env) == [2, 4, 6]
    assert first_ends(eval_env) == [6, 6, 6]


def first_ends(env):
    env.reset()
    dones = np.array([env.step(np.zeros((env.num_envs, *env.action_space.shape)))[2] for _ in range(6)])
    return (dones.argmax(axis=0) + 1).tolist()


def test_an_environment_without_time_limit_is_not_staggered():
    assert not envpool.has_time_limit("HalfCheetah-v5", {"max_episode_steps": -1})
    assert envpool.has_time_limit("HalfCheetah-v5", None)


def test_gymnasium_wrappers_are_refused(tmp_path):
    manager = envpool.EnvPoolExperimentManager(SimpleNamespace(), "r2vpo", "HalfCheetah-v5", str(tmp_path))
    manager.env_wrapper = gym.wrappers.FlattenObservation
    with pytest.raises(ValueError, match="`env_wrapper` cannot wrap EnvPool's environments"):
        manager.create_envs(1)


def test_unknown_vec_env():
    with pytest.raises(ValueError, match="`--vec-env` is 'envpol': it must be one of dummy, subproc, envpool"):
        envpool.prepare_training(["--vec-env", "envpol"])


@pytest.fixture
def run_on_envpool(tmp_path):
    (tmp_path / "args.yml").write_text("vec_env: envpool")
    return dict(stats_path=str(tmp_path), log_dir=None)


@pytest.mark.parametrize("picture", [{"env_kwargs": {"render_mode": "rgb_array"}}, {"env_kwargs": {}, "should_render": True}])
def test_a_picture_is_of_gymnasiums_environment(run_on_envpool, picture):
    env = envpool.create_test_env("HalfCheetah-v5", hyperparams={"normalize": False}, **run_on_envpool, **picture)
    assert isinstance(env.unwrapped, DummyVecEnv) and env.observation_space.dtype == "float32"
    assert env.render_mode in ("rgb_array", "human")


def test_what_gymnasium_does_not_have_is_tried_without_a_picture(run_on_envpool):
    envpool.register_env(["--env", "CheetahRun-v1"])
    arguments = dict(hyperparams={"normalize": False}, **run_on_envpool)
    assert isinstance(envpool.create_test_env("CheetahRun-v1", env_kwargs={}, **arguments).unwrapped, EnvPoolVecEnv)
    with pytest.raises(ValueError, match="CheetahRun-v1 exists in EnvPool only, which draws no pictures"):
        envpool.create_test_env("CheetahRun-v1", env_kwargs={"render_mode": "rgb_array"}, **arguments)


def test_a_run_on_envpool_without_a_picture_is_tried_there(run_on_envpool):
    arguments = dict(hyperparams={"normalize": False}, env_kwargs={}, should_render=False, **run_on_envpool)
    assert isinstance(envpool.create_test_env("HalfCheetah-v5", **arguments).unwrapped, EnvPoolVecEnv)


def test_rl_zoo_plays_ataris_games_with_the_stochastic_policy():
    envpool.register_env(["--env", "Breakout-v5"])
    envpool.register_env(["--env", "CheetahRun-v1"])
    assert R2VPOExperimentManager.is_atari("Breakout-v5") and not R2VPOExperimentManager.is_atari("CheetahRun-v1")
