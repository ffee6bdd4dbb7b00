"""Quiet rollouts, in which the rewards say nothing: told by how little they vary."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

#: A rollout is quiet when its rewards vary by less than this share of what they usually do
QUIET = 0.02
#: As long as rewards have never varied, so many rollouts are quiet: what the first policy has not found in them must be found
#: by another one
PATIENCE = 10
#: Of the squares of rewards that are all the same, up to which their variance is a rounding error
ROUNDING = 1e-12


class RewardVariation(nn.Module):
    """
    Advantages are normalized to a standard deviation of one, whatever they are made of. Where all rewards of a rollout are
    alike, before the first one of a sparse task as after the task is solved, they are made of the critic's errors, and the
    bound on the ratio variance is spent on noise: exploration is lost without a reward, or a policy that had them all.

    A rollout is quiet when no episode has terminated in it, and the standard deviation of its rewards is at most ``QUIET``
    times what it usually is, the root of its mean square over all rollouts. (The end of an episode is news too; a time limit
    is not.) Where nothing has ever varied the first ``PATIENCE`` ones are quiet, then noise may find what there is.

    The buffers are part of what is saved.
    """

    squares: th.Tensor
    n_rollouts: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("squares", th.zeros(()))
        self.register_buffer("n_rollouts", th.zeros(()))
        self.begin()

    def begin(self) -> None:
        """A rollout begins."""
        self._rewards: list[np.ndarray] = []
        self._n_terminated = 0

    def add(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        :param rewards: Of one step, of shape (n_envs,)
        :param dones: Whether an episode has ended, of shape (n_envs,)
        :param infos: Of the same step, which tell a time limit from a termination
        """
        # SB3 adds the value of what a time limit cut off to them
        self._rewards.append(rewards.copy())
        if np.count_nonzero(dones):
            self._n_terminated += sum(not infos[i].get("TimeLimit.truncated", False) for i in np.flatnonzero(dones))

    @th.no_grad()
    def observe(self, everywhere: Callable[[np.ndarray], np.ndarray] = lambda totals: totals) -> bool:
        """
        The rollout has ended: count it.

        :param everywhere: From the totals of this process to those of all
        :return: Whether the rollout is quiet
        """
        rewards = np.array(self._rewards, dtype=np.float64).ravel()
        totals = np.array([len(rewards), rewards.sum(), rewards @ rewards, self._n_terminated])
        n, total, squares, n_terminated = everywhere(totals)
        variance = squares / n - (total / n) ** 2 if n else np.nan
        if not np.isfinite(variance):
            return False
        if variance < ROUNDING * squares / n:
            variance = 0.0
        self.squares += variance
        self.n_rollouts += 1.0
        usual = (self.squares / self.n_rollouts).item()
        may_find = usual > 0.0 or self.n_rollouts <= PATIENCE
        return bool(n_terminated == 0 and variance <= QUIET**2 * usual and may_find)


class WatchRewards(BaseCallback):
    """
    Shows the rewards of each rollout to the model's ``RewardVariation``, as they come from the environment: what the buffer
    has at a time limit is more than the reward.
    """

    def _on_rollout_start(self) -> None:
        self.model.reward_variation.begin()  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        self.model.reward_variation.add(  # type: ignore[attr-defined]
            self.locals["rewards"], self.locals["dones"], self.locals["infos"]
        )
        return True
