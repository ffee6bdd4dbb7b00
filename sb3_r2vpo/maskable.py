from typing import ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_r2vpo.r2vpo import R2VPO

SelfMaskableR2VPO = TypeVar("SelfMaskableR2VPO", bound="MaskableR2VPO")


class MaskableR2VPO(R2VPO, MaskablePPO):  # type: ignore[misc]
    """
    R2VPO with invalid action masking: the updates are R2VPO's, policies, buffers and rollouts are those of sb3-contrib's
    MaskablePPO, and it stands wherever MaskablePPO does. Masked actions have no probability under either policy,
    so they are no part of the ratio.

    Background on invalid action masking: https://arxiv.org/abs/2006.14171

    The arguments are those of `R2VPO`. Actions are ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``.

    :raises ValueError: When an argument is out of its range
    """

    policy_aliases = MaskablePPO.policy_aliases
    supported_action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = (
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    policy_input = "action_masks"

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        """
        Collect experiences as in MaskablePPO.

        :param env: The training environment
        :param callback: Callback that will be called at each step
            (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :param use_masking: Whether or not to use invalid action masks during training
        :return: True if function returned with at least `n_rollout_steps`
            collected, False if callback terminated rollout prematurely.
        :raises ValueError: When the environment has no masks, or they do not fit its actions, or leave no action
        """
        if use_masking and is_masking_supported(env):
            check_shape(get_action_masks(env), self.action_space)
        self._workers.before_rollout(self)
        finished = MaskablePPO.collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps, use_masking)
        check_actions_left(rollout_buffer.action_masks, self.action_space)  # type: ignore[attr-defined]
        return self._workers.after_rollout(self, finished)

    def learn(  # type: ignore[override]
        self: SelfMaskableR2VPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableR2VPO",
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableR2VPO:
        return MaskablePPO.learn(
            self, total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, use_masking, progress_bar
        )


def n_choices(action_space: spaces.Space) -> list[int]:
    """
    :param action_space: The action space
    :return: Number of values that each part of an action can take; a mask has one entry for each value of each part
    """
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(n) for n in action_space.nvec]
    if isinstance(action_space, spaces.MultiBinary):
        return [2] * int(np.prod(action_space.n))
    assert isinstance(action_space, spaces.Discrete)
    return [int(action_space.n)]


def check_shape(masks: np.ndarray, action_space: spaces.Space) -> None:
    """
    :param masks: Masks of one step, one per environment
    :param action_space: The action space
    :raises ValueError: When they do not have one entry for each value of each part of an action
    """
    expected, size = sum(n_choices(action_space)), masks[0].size
    if size != expected:
        raise ValueError(
            f"`action_masks()` of the environment has shape {masks[0].shape}: {action_space} needs {expected} values, "
            "one for each choice"
        )


def check_actions_left(masks: np.ndarray, action_space: spaces.Space) -> None:
    """
    :param masks: Masks of a rollout, of shape (n_steps, n_envs, number of choices)
    :param action_space: The action space
    :raises ValueError: When one leaves nothing to choose, where sb3-contrib chooses among what is invalid
    """
    first_choices = np.cumsum([0, *n_choices(action_space)[:-1]])
    left = np.add.reduceat(masks, first_choices, axis=-1)
    if (left == 0).any():
        step, env, part = np.argwhere(left == 0)[0]
        raise ValueError(
            f"`action_masks()` of environment {env} left no valid action in step {step + 1} of the rollout"
            f"{f' for part {part} of {action_space}' if len(first_choices) > 1 else ''}: "
            "an episode without valid actions must end"
        )
