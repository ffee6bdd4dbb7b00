"""A training goes on from its checkpoints, however it has ended. Nothing that was saved is lost."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_r2vpo import R2VPO, NonFiniteObservationError, NonFiniteUpdateError, ResumableCheckpointCallback
from sb3_r2vpo.checkpoints import load_checkpoint
from sb3_r2vpo.files import check_model_file

ROLLOUT = 64


def train(folder, until, on_step=lambda locals_, globals_: True, algorithm=R2VPO, wrapper=None, **kwargs):
    """As a script would: go on where it was, or begin. A rollout is 64 timesteps, each has a checkpoint."""
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0, wrapper_class=wrapper))
    with ResumableCheckpointCallback(folder, **{"save_freq": ROLLOUT // 2, **kwargs}) as checkpoints:
        settings = dict(n_steps=ROLLOUT // 2, batch_size=32, seed=0, **({"compile": False} if algorithm is R2VPO else {}))
        model = checkpoints.resume(algorithm, env) or algorithm("MlpPolicy", env, **settings)
        callback = CallbackList([ConvertCallback(on_step), checkpoints])
        model.learn(until - model.num_timesteps, callback, reset_num_timesteps=model.num_timesteps == 0)
    return model


def state_of(model):
    optimizer_state = [x for state in model.policy.optimizer.state.values() for _, x in sorted(state.items())]
    statistics = [model.get_vec_normalize_env().obs_rms.mean, model.get_vec_normalize_env().ret_rms.var]
    tensors = [*model.policy.parameters(), *optimizer_state, *model.dual.state_dict().values()]
    return [*(x.detach().numpy().copy() for x in tensors), *statistics]


def assert_same(model, other):
    assert model.num_timesteps == other.num_timesteps and model._n_updates == other._n_updates
    for x, y in zip(state_of(model), state_of(other), strict=True):
        np.testing.assert_array_equal(x, y)


def steps_in(folder):
    return [int(path.stem.split("_")[-2]) for path in ResumableCheckpointCallback(folder).checkpoints()]


def test_an_interrupted_training_goes_on_as_one_that_was_stopped_there(tmp_path):
    def fail(locals_, globals_):
        if locals_["self"].num_timesteps == 3 * ROLLOUT + 10:
            raise RuntimeError("a defect")
        return True

    with pytest.raises(RuntimeError, match="a defect"):
        train(tmp_path / "killed", 6 * ROLLOUT, fail)
    train(tmp_path / "stopped", 3 * ROLLOUT)
    resumed, continued = (train(tmp_path / name, 6 * ROLLOUT) for name in ("killed", "stopped"))
    assert resumed.num_timesteps == 6 * ROLLOUT
    assert_same(resumed, continued)
    # Nothing is left to do
    newest = ResumableCheckpointCallback(tmp_path / "killed").newest()
    before = newest.read_bytes()
    train(tmp_path / "killed", 6 * ROLLOUT)
    assert newest.read_bytes() == before


def test_a_resumed_training_has_random_numbers_of_its_own(tmp_path):
    seen = []
    keep = lambda locals_, globals_: seen.append(locals_["actions"].copy()) or True  # noqa: E731
    train(tmp_path, ROLLOUT, keep)
    train(tmp_path, 2 * ROLLOUT, keep)
    assert len(seen) == ROLLOUT and not np.isclose(seen[0], seen[ROLLOUT // 2]).any()


def test_a_few_are_kept_and_the_newest_whole_one_is_taken(tmp_path, recwarn):
    train(tmp_path, 5 * ROLLOUT)
    assert steps_in(tmp_path) == [3 * ROLLOUT, 4 * ROLLOUT, 5 * ROLLOUT]
    newest = tmp_path / f"rl_model_{5 * ROLLOUT}_steps.zip"
    newest.write_bytes(newest.read_bytes()[:-100])
    callback = ResumableCheckpointCallback(tmp_path)
    with pytest.warns(UserWarning, match=rf"rl_model_{5 * ROLLOUT}_steps.zip is damaged .* not resumed from"):
        assert callback.newest() == tmp_path / f"rl_model_{4 * ROLLOUT}_steps.zip"
    with pytest.warns(UserWarning):
        assert train(tmp_path, 6 * ROLLOUT, keep=None).num_timesteps == 6 * ROLLOUT
    assert steps_in(tmp_path) == [3 * ROLLOUT, 4 * ROLLOUT, 5 * ROLLOUT, 6 * ROLLOUT]


def test_a_damaged_one_that_is_ahead_takes_nobodys_place(tmp_path, recwarn):
    (tmp_path / "rl_model_1000_steps.zip").write_bytes(b"PK")
    train(tmp_path, 3 * ROLLOUT, keep=1)
    assert ResumableCheckpointCallback(tmp_path).newest() == tmp_path / f"rl_model_{3 * ROLLOUT}_steps.zip"
    assert steps_in(tmp_path) == [3 * ROLLOUT, 1000]


def test_what_sb3s_callback_has_saved_is_left_alone(tmp_path):
    plain = CheckpointCallback(ROLLOUT // 4, str(tmp_path))
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    model = PPO("MlpPolicy", env, n_steps=ROLLOUT // 2, batch_size=32)
    model.learn(2 * ROLLOUT, [plain, ResumableCheckpointCallback(tmp_path, save_freq=ROLLOUT // 2, keep=1)])
    # In the middle of a rollout there are SB3's, between two ours came last
    assert steps_in(tmp_path) == [ROLLOUT // 2, 3 * ROLLOUT // 2, 2 * ROLLOUT]
    newest = ResumableCheckpointCallback(tmp_path).newest()
    newest.unlink()
    assert newest.name == f"rl_model_{2 * ROLLOUT}_steps.zip" and ResumableCheckpointCallback(tmp_path).newest() is None
    with pytest.raises(ValueError, match=r"rl_model_32_steps\.zip is no checkpoint of a `ResumableCheckpointCallback`"):
        load_checkpoint(tmp_path / "rl_model_32_steps.zip", PPO, env)


def test_another_training_in_the_folder_is_not_mixed_with(tmp_path):
    train(tmp_path, 2 * ROLLOUT)
    model = R2VPO("MlpPolicy", "Pendulum-v1", n_steps=ROLLOUT)
    with pytest.raises(ValueError, match=r"rl_model_128_steps.zip is ahead of this training \(0 timesteps\): resume it, or"):
        model.learn(ROLLOUT, ResumableCheckpointCallback(tmp_path))


def test_statistics_and_environment_belong_together(tmp_path):
    train(tmp_path, ROLLOUT)
    with pytest.raises(ValueError, match="zip has `VecNormalize` statistics, environment has none: wrap"):
        ResumableCheckpointCallback(tmp_path).resume(R2VPO, make_vec_env("Pendulum-v1", 2))


def test_other_on_policy_algorithms(tmp_path):
    train(tmp_path, 2 * ROLLOUT, algorithm=PPO)
    assert train(tmp_path, 3 * ROLLOUT, algorithm=PPO).num_timesteps == 3 * ROLLOUT


@pytest.mark.parametrize("first, every, saved", [(0.0, 0.0, [0, 1, 2, 3]), (0.0, 600.0, [0, 3]), (60.0, 0.0, [3])])
def test_without_a_frequency_it_is_time_that_counts(tmp_path, monkeypatch, first, every, saved):
    monkeypatch.setattr("sb3_r2vpo.checkpoints.FIRST_SAVE_AFTER", first)
    monkeypatch.setattr("sb3_r2vpo.checkpoints.SAVE_EVERY", every)
    train(tmp_path, 3 * ROLLOUT, save_freq=None, keep=None)
    assert steps_in(tmp_path) == [n_rollouts * ROLLOUT for n_rollouts in saved]


class Trap(gym.Wrapper):
    """Something bad happens at a step."""

    def __init__(self, env, kind):
        super().__init__(env)
        self.kind, self.count = kind, 0

    def step(self, action):
        self.count += 1
        obs, reward, *rest = self.env.step(action)
        if self.count == 2 * ROLLOUT + 5:
            if isinstance(self.kind, signal.Signals):
                os.kill(os.getpid(), self.kind)
            elif self.kind == "reward":
                reward = np.nan
            else:
                obs = obs * np.nan
        return obs, reward, *rest


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reward", NonFiniteUpdateError),
        ("observation", NonFiniteObservationError),
        (signal.SIGTERM, SystemExit),
        (signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_whatever_ends_it_leaves_a_model_with_finite_statistics(kind, error, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        # Ten minutes are long
        train(tmp_path, 10 * ROLLOUT, wrapper=lambda env: Trap(env, kind), save_freq=None)
    assert signal.getsignal(signal.SIGTERM) == before
    assert f"Training was ended by {error.__name__} after {4 * ROLLOUT} timesteps." in capsys.readouterr().out
    assert steps_in(tmp_path) == [4 * ROLLOUT]
    model = train(tmp_path, 6 * ROLLOUT)
    assert all(np.isfinite(x).all() for x in state_of(model))


def test_training_outlives_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    fsync, failures = os.fsync, iter([True, True])

    def fail_twice(descriptor):
        if next(failures, False):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail_twice)
    with pytest.warns(UserWarning, match="Training goes on without this checkpoint: .*_64_steps.zip cannot be written"):
        train(tmp_path, 4 * ROLLOUT)
    assert steps_in(tmp_path) == [3 * ROLLOUT, 4 * ROLLOUT]


def forked(function, *args):
    """Run in a process of its own that need not import anything."""

    def quietly():
        th.set_num_threads(1)
        function(*args)

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    return process


def continue_without_kills(folder, points):
    for until in points:
        model = train(folder, until)
    return model


def kill_at_random(folder, n_kills, seed):
    """
    :return: Where the training was resumed after being killed
    """
    rng, points = random.Random(seed), []
    for kill in range(n_kills):
        # It would take a while
        process = forked(train, folder, 10**6)
        had = max(steps_in(folder), default=0)
        # It may also be killed while it is resumed
        time.sleep(rng.uniform(0.0, 1.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for path in ResumableCheckpointCallback(folder).checkpoints():
            check_model_file(path)
        now = max(steps_in(folder), default=0)
        assert now >= had, f"lost by kill {kill}"
        points.append(now)
    return points


@pytest.mark.parametrize("n_kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments(n_kills, tmp_path):
    points = kill_at_random(tmp_path / "killed", n_kills, seed=n_kills)
    end = points[-1] + 2 * ROLLOUT
    resumed = train(tmp_path / "killed", end)
    assert not list(Path(tmp_path / "killed").glob(".*"))
    # Where no rollout was finished between two kills, it is resumed from the same point, which changes nothing
    assert_same(resumed, continue_without_kills(tmp_path / "alive", [*(p for p in sorted(set(points)) if p > 0), end]))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_while_saving(call, tmp_path):
    def train_until_the_third_save():
        original, calls = getattr(os, call), []

        def killed(*args):
            calls.append(args)
            # Of a file and of its folder
            if len(calls) == (3 if call == "replace" else 5):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(os, call, killed)
        train(tmp_path, 10**6)

    process = forked(train_until_the_third_save)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert steps_in(tmp_path) == [ROLLOUT, 2 * ROLLOUT] and list(tmp_path.glob(".*.partial"))
    assert train(tmp_path, 4 * ROLLOUT).num_timesteps == 4 * ROLLOUT
    assert steps_in(tmp_path) == [2 * ROLLOUT, 3 * ROLLOUT, 4 * ROLLOUT] and not list(tmp_path.glob(".*.partial"))
