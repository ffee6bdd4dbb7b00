"""What R2VPO is measured against is what it is called."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from peers import PPO, SPO

SHARED = dict(n_steps=128, batch_size=32, n_epochs=8, learning_rate=3e-3, ent_coef=0.005, seed=5, device="cpu")
CLIP_RANGE = 0.02


def trained(algorithm, env_id="Pendulum-v1", **kwargs):
    return algorithm("MlpPolicy", gym.make(env_id), **{**SHARED, "clip_range": CLIP_RANGE, **kwargs}).learn(4 * 128)


def weights(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


@pytest.fixture(scope="module")
def sb3_ppo():
    return trained(stable_baselines3.PPO)


@pytest.mark.parametrize("compile", [False, True])
def test_ppo_is_sb3s(sb3_ppo, compile):
    model = trained(PPO, compile=compile)
    assert not model._programs.failed and len(model._programs) == compile
    np.testing.assert_allclose(weights(model), weights(sb3_ppo), rtol=1e-3, atol=1e-4)
    assert sb3_ppo.logger.name_to_value["train/clip_fraction"] > 0.05, "the clip must have had something to do"


def test_another_clip_range_gives_other_weights(sb3_ppo):
    assert np.abs(weights(trained(PPO, clip_range=4 * CLIP_RANGE)) - weights(sb3_ppo)).max() > 1e-3


class LossOfSPO:
    """One update of SPO with nothing but torch, from the rollout that a model has collected."""

    def __init__(self, model):
        self.model, self.policy = model, model.policy
        self.optimizer = th.optim.Adam(self.policy.parameters(), lr=SHARED["learning_rate"], eps=1e-5)

    def train(self):
        for _ in range(SHARED["n_epochs"]):
            for batch in self.model.rollout_buffer.get(SHARED["batch_size"]):
                self.optimizer.zero_grad()
                self(batch).backward()
                th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.model.max_grad_norm)
                self.optimizer.step()

    def __call__(self, batch):
        values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
        a = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        rho = (log_prob - batch.old_log_prob).exp()
        objective = rho * a - a.abs() / (2 * CLIP_RANGE) * (rho - 1) ** 2
        return -objective.mean() + 0.5 * (batch.returns - values.flatten()).square().mean() - 0.005 * entropy.mean()


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_spo_is_its_formula(compile):
    model, direct = (SPO("MlpPolicy", gym.make("Pendulum-v1"), clip_range=CLIP_RANGE, compile=compile, **SHARED) for _ in "ab")
    loss = LossOfSPO(direct)
    direct.train = loss.train
    for m in (model, direct):
        m.set_random_seed(5)
        m.learn(3 * 128)
    np.testing.assert_allclose(weights(model), weights(direct), rtol=1e-3, atol=1e-4)
    assert not model._programs.failed and len(model._programs) == compile
