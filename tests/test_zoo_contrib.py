"""Action masks and LSTM policies in RL Zoo."""

import inspect
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml

from sb3_r2vpo import R2VPO, RecurrentR2VPO
from sb3_r2vpo.zoo import ALGOS, hyperparameter_file, register

pytest.importorskip("rl_zoo3")

import rl_zoo3
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3.common.vec_env import DummyVecEnv
from zoo_entries import complete, counterparts

from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager
from sb3_r2vpo.zoo.hyperparameters import named_schedules
from sb3_r2vpo.zoo.masks import MaskableR2VPO, with_masks

ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(hyperparameter_file("r2vpo_lstm").read_text())
PPO_ENTRIES = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo_lstm.yml").read_text())
ARGUMENTS = {
    name: parameter.default
    for base in (R2VPO, RecurrentR2VPO)
    for name, parameter in inspect.signature(base.__init__).parameters.items()
}


def r2vpo(*args, cwd) -> str:
    command = [sys.executable, "-m", "sb3_r2vpo", *args]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_masks_are_found_in_evaluation_and_enjoy(tmp_path):
    """Of 20 actions 19 are invalid: with its masks every policy has the full return of 100, without them about 5."""
    (tmp_path / "masked_envs.py").write_text(
        "import gymnasium as gym\n"
        "kwargs = dict(dim=20, n_invalid_actions=19)\n"
        "gym.register('Masked-v0', 'sb3_contrib.common.envs:InvalidActionEnvDiscrete', kwargs=kwargs)\n"
    )
    names = ["--algo", "maskable_r2vpo", "--env", "Masked-v0", "--gym-packages", "masked_envs"]
    trained = r2vpo("train", *names, "-n", "64", "-params", "n_steps:64", "--eval-freq", "32", cwd=tmp_path)
    assert str(hyperparameter_file("maskable_r2vpo")) in trained
    assert "episode_reward=100.00 +/- 0.00" in trained
    watched = r2vpo("enjoy", *names, "--no-render", "-n", "250", "--stochastic", cwd=tmp_path)
    assert "Mean reward: 100.00 +/- 0.00" in watched


def test_masks_are_those_of_the_last_environment_of_the_thread():
    """The trials of a search can be threads, each with a model and environments of its own."""
    valid = []

    def play():
        env = with_masks(DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=19)]))
        model = MaskableR2VPO("MlpPolicy", env, n_steps=64, batch_size=32, device="cpu")
        obs = env.reset()
        for _ in range(50):
            actions, _ = model.predict(obs)
            valid.append(np.stack(env.env_method("action_masks"))[0, actions[0]])
            obs, *_ = env.step(actions)

    threads = [threading.Thread(target=play) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(valid) == 150 and all(valid)
    # Others' environments stay as they are
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    assert with_masks(env) is env


def test_an_lstm_remembers_in_enjoy(tmp_path):
    names = ["--algo", "r2vpo_lstm", "--env", "CartPoleNoVel-v1"]
    trained = r2vpo("train", *names, "-n", "512", "--eval-freq", "256", "--eval-episodes", "1", cwd=tmp_path)
    assert str(hyperparameter_file("r2vpo_lstm")) in trained and "Eval num_timesteps=512" in trained
    assert "Mean reward:" in r2vpo("enjoy", *names, "--no-render", "-n", "300", cwd=tmp_path)


@pytest.mark.slow
def test_video_of_an_lstm(tmp_path):
    pytest.importorskip("pygame")
    pytest.importorskip("moviepy")
    names = ["--algo", "r2vpo_lstm", "--env", "CartPoleNoVel-v1"]
    r2vpo("train", *names, "-n", "256", "--eval-freq", "-1", cwd=tmp_path)
    r2vpo("record_video", *names, "-n", "100", cwd=tmp_path)
    assert list(tmp_path.rglob("*.mp4"))


def test_entries_are_those_of_recurrent_ppo():
    ours = {}
    for ppo_env_id in PPO_ENTRIES:
        if "Bullet" not in ppo_env_id:
            ours |= {env_id: complete(PPO_ENTRIES[ppo_env_id], ARGUMENTS) for env_id in counterparts(ppo_env_id)}
    # RL Zoo's has a policy that RecurrentPPO does not have
    ours["default"]["policy"] = "MlpLstmPolicy"
    # It has 25 rollouts to learn in
    ours["PendulumNoVel-v1"]["target_var"] = 0.1
    assert {env_id: complete(entry, ARGUMENTS) for env_id, entry in ENTRIES.items()} == ours


def test_entries_are_of_environments():
    register()
    names = set(ENTRIES) - {"default", "atari"}
    assert len(names) > 20 and not {name for name in names if name not in gym.registry}


@pytest.mark.parametrize(
    "hyperparams, message",
    [
        (dict(clip_range=0.2), "no clipping"),
        (dict(taget_var=0.1), "`taget_var` is not a hyperparameter of r2vpo_lstm: did you mean `target_var`"),
        (dict(target_var=-0.1), "`target_var` is -0.1"),
        (dict(policy="MlpPolicy"), "'MlpPolicy': RecurrentR2VPO has MlpLstmPolicy"),
    ],
)
def test_hyperparameters_are_checked(hyperparams, message, tmp_path):
    register()
    env_id = "CartPoleNoVel-v1"
    args = SimpleNamespace(env=env_id, env_kwargs=None, uuid=False, seed=0, vec_env="dummy")
    manager = R2VPOExperimentManager(args, "r2vpo_lstm", env_id, str(tmp_path), hyperparams=hyperparams, verbose=0)
    with pytest.raises((ValueError, TypeError), match=message):
        manager.setup_experiment()


@pytest.mark.parametrize("algo, policy", [("r2vpo_lstm", "MlpLstmPolicy"), ("maskable_r2vpo", "MlpPolicy")])
def test_the_search_space(algo, policy):
    register()
    assert algo in ALGOS
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        # Discrete actions, without a standard deviation
        arguments = HYPERPARAMS_SAMPLER[algo](trial, 0, 1, {})
        converted = HYPERPARAMS_CONVERTER[algo](trial.params)
        # RL Zoo makes schedules of their names
        converted |= named_schedules(converted)
        assert {name: repr(converted[name]) for name in arguments} == {name: repr(x) for name, x in arguments.items()}
        model = rl_zoo3.ALGOS[algo](policy, "CartPole-v1", device="cpu", **arguments)
        assert model.batch_size == arguments["batch_size"]
