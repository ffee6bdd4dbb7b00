"""Rollouts with a compiled forward pass are those of SB3. Compiling takes seconds: most cases are marked slow."""

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv

from sb3_r2vpo import R2VPO
from sb3_r2vpo.fast.acting import compiled_forward
from sb3_r2vpo.fast.programs import Programs

N_STEPS, N_ENVS = 32, 2


class RandomEnv(gym.Env):
    """Episodes of 5 steps, ended by the environment or by the time limit."""

    observation_space = spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.n_steps += 1
        ended = self.n_steps == 5
        terminated = bool(self.np_random.random() < 0.5)
        return self._obs(), float(np.sum(action)), ended and terminated, ended and not terminated, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class SeededImages(FakeImageEnv):
    """It samples from its observation space, which no seed reaches."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        return super().reset(seed=seed, options=options)


ENVS: dict[str, Any] = {
    "box": lambda: RandomEnv(spaces.Box(-1.0, 1.0, (2,))),
    "discrete": lambda: RandomEnv(spaces.Discrete(3)),
    "multi_discrete": lambda: RandomEnv(spaces.MultiDiscrete([2, 3])),
    "multi_binary": lambda: RandomEnv(spaces.MultiBinary(3)),
    "dict": lambda: SimpleMultiObsEnv(random_start=False),
    "image": lambda: SeededImages(screen_height=36, screen_width=36, n_channels=1),
}
POLICIES = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}


class RecordLocals(BaseCallback):
    """What other callbacks read."""

    def _on_training_start(self) -> None:
        self.recorded: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        names = ("actions", "clipped_actions", "values", "log_probs", "rewards", "dones", "n_steps")
        self.recorded.append({name: copy.deepcopy(self.locals[name]) for name in names})
        return True


def collect(env: str, compile: bool, n_rollouts: int = 2) -> tuple[R2VPO, RecordLocals]:
    vec_env = make_vec_env(ENVS[env], n_envs=N_ENVS, seed=0)
    model = R2VPO(
        POLICIES.get(env, "MlpPolicy"), vec_env, n_steps=N_STEPS, batch_size=64, seed=0, device="cpu", compile=compile
    )
    callback = RecordLocals()
    _, callbacks = model._setup_learn(10_000, callback)
    callbacks.on_training_start({}, {})
    for _ in range(n_rollouts):
        model.collect_rollouts(model.env, callbacks, model.rollout_buffer, N_STEPS)
    return model, callback


def assert_same_rollouts(env: str) -> R2VPO:
    (plain, plain_callback), (other, callback) = (collect(env, compile) for compile in (False, True))
    assert len(other._forward_programs) == 1 and not other._forward_programs.failed
    buffers = [vars(model.rollout_buffer) for model in (plain, other)]
    for name in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        th.testing.assert_close(buffers[0][name], buffers[1][name], rtol=1e-4, atol=1e-4)
    assert len(callback.recorded) == 2 * N_STEPS
    th.testing.assert_close(plain_callback.recorded, callback.recorded, rtol=1e-4, atol=1e-4)
    returns = [[info["r"] for info in model.ep_info_buffer] for model in (plain, other)]
    assert len(returns[0]) > 0 and returns[0] == pytest.approx(returns[1], abs=1e-3)
    return other


def test_same_rollouts_as_sb3():
    model = assert_same_rollouts("box")
    # Nothing of it stays in the policy
    assert "forward" not in vars(model.policy)

    with compiled_forward(model.policy, model._forward_programs), th.no_grad():
        obs = th.as_tensor(model._last_obs)
        model.policy(obs)
        # Another number of environments, and what is not for rollouts, go the plain way
        assert model.policy(obs[:1])[0].shape == (1, 2)
        deterministic = model.policy(obs, deterministic=True)[0]
        # A copy is of its own weights
        for clone in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))):
            for p in clone.parameters():
                p.zero_()
            clone(obs)
            assert th.all(clone(obs, deterministic=True)[0] == 0.0)
    with th.no_grad():
        th.testing.assert_close(model.policy(obs, deterministic=True)[0], deterministic)
    with compiled_forward(model.policy, model._forward_programs):
        assert model.policy(obs)[1].requires_grad, "gradients flow where they are not switched off"


@pytest.mark.slow
@pytest.mark.parametrize("env", [env for env in ENVS if env != "box"])
def test_same_rollouts_as_sb3_in_every_space(env):
    assert_same_rollouts(env)


def test_policies_with_hooks_act_plain():
    model, _ = collect("box", compile=False)
    seen = []
    model.policy.mlp_extractor.register_forward_hook(lambda *_: seen.append(1))
    programs = Programs("policy's forward pass")
    with th.no_grad(), pytest.warns(UserWarning, match="forward pass cannot be compiled .* has hooks"):
        with compiled_forward(model.policy, programs):
            for _ in range(3):
                model.policy(th.zeros(N_ENVS, 3))
    assert len(seen) == 3 and len(programs) == 0


def test_auto(monkeypatch):
    model, _ = collect("box", compile=False)
    monkeypatch.setattr("sb3_r2vpo.r2vpo.COMPILE_FORWARD_PAYS_FROM", 10)
    model.compile = "auto"
    model.num_timesteps, model._total_timesteps = 0, 10 * N_ENVS
    assert not model._compile_forward(), "not before the gradient step is"
    model._programs.compiled.append(None)
    assert model._compile_forward()
    model.num_timesteps = N_ENVS
    assert not model._compile_forward()
    model._forward_programs.compiled.append(None)
    assert model._compile_forward()
    model.policy.use_sde = True
    assert not model._compile_forward()


@pytest.mark.slow
def test_a_cold_compile_with_discrete_actions_warns_of_nothing(tmp_path):
    code = """
from sb3_r2vpo import R2VPO
R2VPO("MlpPolicy", "CartPole-v1", n_steps=64, compile=True).learn(128)
"""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "c-shim" not in run.stderr, run.stderr
