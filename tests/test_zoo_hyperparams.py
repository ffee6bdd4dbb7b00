"""The hyperparameters of every environment, and what can be written in them."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import yaml

from sb3_r2vpo import R2VPO
from sb3_r2vpo.zoo import hyperparameter_file, register

pytest.importorskip("rl_zoo3")

import rl_zoo3
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.evaluation import evaluate_policy
from zoo_entries import complete, counterparts

from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager
from sb3_r2vpo.zoo.lasting import LastingExperimentManager

ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(hyperparameter_file().read_text())
PPO_ENTRIES = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml").read_text())

#: Keys of an entry that are not the algorithm's
OF_RL_ZOO = {"n_envs", "n_timesteps", "normalize", "frame_stack", "env_wrapper"}
ARGUMENTS = {name: parameter.default for name, parameter in inspect.signature(R2VPO.__init__).parameters.items()}

#: Entries that are not RL Zoo's of PPO, and why
OWN = {
    **dict.fromkeys(
        ("MountainCar-v0", "Acrobot-v1", "LunarLander-v3", "LunarLanderContinuous-v3"),
        "more epochs at a rate that falls from a higher one",
    ),
    "CartPole-v1": "more environments take fewer vector steps",
    "BipedalWalker-v3": "with a smaller discount the walk is faster",
    "MountainCarContinuous-v0": "the budget and exploration of RL Zoo's TRPO find the flag",
} | {
    f"{name}-{version}": reason
    for version in ("v4", "v5")
    for name, reason in {
        **dict.fromkeys(("HalfCheetah", "Hopper", "Walker2d", "Ant"), "larger steps than PPO's went further"),
        "Swimmer": "a rate that falls from a higher one",
    }.items()
}
#: RL Zoo's entries of PPO that are not here, and why
LEFT_OUT = {env_id: "PyBullet is not supported" for env_id in PPO_ENTRIES if "Bullet" in env_id}


def test_entries_hold_arguments_only():
    unknown = {env_id: set(entry) - OF_RL_ZOO - set(ARGUMENTS) for env_id, entry in ENTRIES.items()}
    assert not {env_id: keys for env_id, keys in unknown.items() if keys}


@pytest.mark.parametrize("key", ["clip_range", "var_coef"])
def test_no_entry_has(key):
    """R2VPO has no clip, and λ would start anew when a training is continued."""
    assert not [env_id for env_id, entry in ENTRIES.items() if key in entry]


@pytest.mark.parametrize("ppo_env_id", [env_id for env_id in PPO_ENTRIES if env_id not in LEFT_OUT])
def test_the_entry_is_that_of_ppo(ppo_env_id):
    expected = complete(PPO_ENTRIES[ppo_env_id], ARGUMENTS)
    for env_id in counterparts(ppo_env_id):
        if env_id in OWN:
            assert complete(ENTRIES[env_id], ARGUMENTS) != expected
        else:
            assert complete(ENTRIES[env_id], ARGUMENTS) == expected


def test_what_is_left_out_is_not_here():
    assert LEFT_OUT and not set(LEFT_OUT) & set(ENTRIES)


def test_every_mujoco_environment_has_an_entry():
    names = {env_id for env_id, spec in gym.registry.items() if "envs.mujoco" in str(spec.entry_point)}
    names -= {env_id for env_id in names if env_id.endswith(("-v2", "-v3"))}
    assert len(names) == 22
    # It needs a MuJoCo older than 3
    assert names - set(ENTRIES) == {"Pusher-v4"}


def dm_control_of_envpool() -> set[str]:
    registration = pytest.importorskip("envpool.registration")
    return {env_id for env_id, (module, *_) in registration.registry.specs.items() if module == "envpool.mujoco.dmc"}


def dm_control_of_shimmy() -> set[str]:
    suite = pytest.importorskip("shimmy.utils.envs_configs").DM_CONTROL_SUITE_ENVS
    return {f"dm_control/{domain}-{task}-v0" for domain, task in suite}


@pytest.mark.parametrize("suite", [dm_control_of_envpool, dm_control_of_shimmy])
def test_every_task_of_deepmind_control_has_an_entry(suite):
    names = suite()
    assert len(names) > 50
    assert not names - set(ENTRIES)


def test_every_entry_is_of_an_environment():
    known = {*PPO_ENTRIES, *gym.registry, *dm_control_of_envpool(), *dm_control_of_shimmy()}
    assert not set(ENTRIES) - known


def manager_of(env_id: str, log_folder: Path, **hyperparams: Any) -> ExperimentManager:
    """
    :param env_id: Name of an environment
    :param log_folder: Folder of the run
    :param hyperparams: What differs from the entry
    :return: What ``r2vpo train`` makes for this environment, with ``--vec-env envpool`` where it needs that
    """
    register()
    kwargs: dict[str, Any] = dict(n_timesteps=32, eval_freq=-1, hyperparams=hyperparams, log_interval=-1, verbose=0)
    manager_class = R2VPOExperimentManager
    if env_id not in gym.registry:
        pytest.importorskip("envpool")
        from sb3_r2vpo.zoo import envpool

        envpool.register_env(["--env", env_id])
        manager_class = envpool.EnvPoolExperimentManager
    # What an earlier command line of this process resumed is not this one's
    LastingExperimentManager.resumed_run = None
    return manager_class(
        SimpleNamespace(env=env_id, env_kwargs=None, uuid=False, seed=0, vec_env="dummy"),
        "r2vpo",
        env_id,
        str(log_folder),
        **kwargs,
    )


#: What to try an entry with whose name is not an environment's
STAND_INS = {"default": "FrozenLake-v1", "atari": "PongNoFrameskip-v4"}
#: What an environment needs beside RL Zoo, by the beginning of its name
PACKAGES = {
    "Pong": ["ale_py", "cv2"],
    "BipedalWalker": ["Box2D"],
    "LunarLander": ["Box2D"],
    "CarRacing": ["Box2D", "pygame", "cv2"],
    "MiniGrid": ["minigrid"],
    "dm_control/": ["dm_control", "shimmy"],
}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_two_updates_with_every_entry(entry, tmp_path, capsys):
    env_id = STAND_INS.get(entry, entry)
    for package in [package for name, packages in PACKAGES.items() if env_id.startswith(name) for package in packages]:
        pytest.importorskip(package)
    manager = manager_of(env_id, tmp_path, n_envs=2, n_steps=8, batch_size=8, n_epochs=1)
    try:
        model, _ = manager.setup_experiment()
        manager.learn(model)
    except Exception as e:
        # dm_control/quadruped-escape-v0 uploads its terrain to the renderer
        if "OpenGL" in str(e):
            pytest.skip(f"needs OpenGL, for example MUJOCO_GL=egl: {e}")
        raise
    assert model.num_timesteps == 32 and model._n_updates == 2
    assert ("Using 'default' hyperparameters" in capsys.readouterr().out) == (entry == "default")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["dm_control/lqr-lqr_2_1-v0", "dm_control/lqr-lqr_6_2-v0"])
def test_episodes_end_where_dm_control_sets_no_limit(env_id, tmp_path):
    pytest.importorskip("dm_control")
    pytest.importorskip("shimmy")
    manager = manager_of(env_id, tmp_path, n_envs=1, n_steps=500, batch_size=500, n_epochs=1)
    model, _ = manager.setup_experiment()
    returns, lengths = evaluate_policy(model, manager.create_envs(1, eval_env=True), 1, return_episode_rewards=True)
    assert lengths == [1000] and returns[0] > 0.0


def test_schedules_in_training_and_in_what_it_saves(tmp_path):
    schedules = dict(learning_rate="lin_0.01", target_var="lin_0.04", var_coef="lin_3.0", clip_range_vf="lin_0.2")
    manager = manager_of("CartPole-v1", tmp_path, n_envs=2, n_steps=16, batch_size=32, **schedules)
    model, _ = manager.setup_experiment()
    manager.learn(model)
    manager.save_trained_model(model)

    run_folder = tmp_path / "r2vpo" / "CartPole-v1_1"
    saved = yaml.load((run_folder / "CartPole-v1" / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert {name: saved[name] for name in schedules} == schedules
    model = R2VPO.load(run_folder / "CartPole-v1.zip")
    assert [model.target_var(x) for x in (1.0, 0.5, 0.0)] == [0.04, 0.02, 0.0]
    assert [model.var_coef(x) for x in (1.0, 0.5, 0.0)] == [3.0, 1.5, 0.0]
    assert not model.dual.learned and model.dual.value.item() == 0.0, "the last update is at the end of training"

    command = [sys.executable, "-m", "sb3_r2vpo", "enjoy", "--env", "CartPole-v1", "--no-render", "-n", "300", "-f", "."]
    watched = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert watched.returncode == 0 and "Mean reward:" in watched.stdout, watched.stderr


@pytest.mark.parametrize("var_coef", ["auto", "auto_0.5"])
def test_a_learned_coefficient_is_no_schedule(var_coef, tmp_path):
    model, _ = manager_of("CartPole-v1", tmp_path, var_coef=var_coef, target_var=0.01).setup_experiment()
    assert model.var_coef == var_coef and model.dual.learned
    assert model.target_var(0.5) == 0.01


def test_a_bound_by_the_rollout_is_no_schedule(tmp_path):
    """An entry of hyperparameters can go back to the default of a group that it shares."""
    model, _ = manager_of("CartPole-v1", tmp_path, target_var="auto").setup_experiment()
    assert model.target_var == "auto"


BAD_SCHEDULES = [
    ("learning_rate", "1e-3"),
    ("clip_range_vf", "lin_0.2_0.1"),
    ("target_var", "lin0.02"),
    ("target_var", "const_0.02"),
    ("target_var", "lin_"),
    ("target_var", "auto_0.02"),
    ("var_coef", "lin_two"),
    ("var_coef", "2.0"),
]


@pytest.mark.parametrize("name, value", BAD_SCHEDULES)
def test_a_malformed_schedule_is_named(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{name}` is '{value}': it must be a number .* 'lin_<initial value>'") as error:
        manager_of("CartPole-v1", tmp_path, **{name: value}).setup_experiment()
    assert ("'auto_<initial value>'" in str(error.value)) == (name == "var_coef")
    assert not list(tmp_path.iterdir()), "before anything is written"
