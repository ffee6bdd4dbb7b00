from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvMultiBinary, SimpleMultiObsEnv

from sb3_r2vpo import R2VPO
from sb3_r2vpo.rollouts import minibatch_source

ENVIRONMENTS = {
    "MlpPolicy-box": lambda: gym.make("Pendulum-v1"),
    "MlpPolicy-discrete": lambda: gym.make("CartPole-v1"),
    "MlpPolicy-multi_binary": lambda: IdentityEnvMultiBinary(3),
    "MultiInputPolicy-dict": lambda: SimpleMultiObsEnv(),
    "CnnPolicy-image": lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1),
}


def full_buffer(name: str, **kwargs) -> RolloutBuffer:
    model = R2VPO(name.split("-")[0], ENVIRONMENTS[name](), n_steps=50, batch_size=50, n_epochs=1, seed=0, **kwargs)
    _, callback = model._setup_learn(50, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=50)
    return model.rollout_buffer


@pytest.mark.parametrize("already_flattened", [False, True])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_minibatches_are_those_of_the_buffer(name, already_flattened):
    buffer = full_buffer(name)
    if already_flattened:
        next(buffer.get(1))
    ours = minibatch_source(buffer)
    assert ours != buffer.get
    np.random.seed(1)
    our_epochs = [list(ours(16)) for _ in range(2)]
    np.random.seed(1)
    for our_epoch in our_epochs:
        for our_batch, batch in zip(our_epoch, buffer.get(16), strict=True):
            assert type(our_batch) is type(batch)
            for field, x, y in zip(batch._fields, our_batch, batch, strict=True):
                for a, b in zip(x.values(), y.values(), strict=True) if isinstance(y, dict) else [(x, y)]:
                    assert a.dtype == b.dtype and th.equal(a, b), field


class HalfBuffer(RolloutBuffer):
    """Yields only half of the rollout."""

    def get(self, batch_size=None):
        yield from list(super().get(batch_size))[: self.buffer_size // batch_size // 2]


class WeightedSamples(NamedTuple):
    observations: th.Tensor
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor


class WeightedBuffer(RolloutBuffer):
    """Has one thing more for each sample."""

    def _get_samples(self, batch_inds, env=None):
        return WeightedSamples(*super()._get_samples(batch_inds, env), weights=th.ones(len(batch_inds)))


def test_what_the_policy_does_not_ask_for_stays_in_the_buffer():
    plain, weighted = (
        R2VPO("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0, rollout_buffer_class=buffer).learn(128)
        for buffer in (None, WeightedBuffer)
    )
    for x, y in zip(plain.policy.parameters(), weighted.policy.parameters(), strict=True):
        assert th.equal(x, y)


def test_a_buffer_with_its_own_get_is_asked_for_it():
    buffer = full_buffer("MlpPolicy-box", rollout_buffer_class=HalfBuffer)
    assert len(list(minibatch_source(buffer)(10))) == 2
