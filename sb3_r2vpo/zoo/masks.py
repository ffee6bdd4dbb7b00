"""
Action masks in RL Zoo. Its evaluation, `enjoy` and `record_video` ask for an action without saying of which environment:
it is the one that gave the observation, so the last one that was reset or stepped.
"""

import threading

import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_r2vpo import maskable

#: The trials of a search may be threads
_of_thread = threading.local()


class MaskSource(VecEnvWrapper):
    """
    Remembers that it was the last environment to give observations.

    :param venv: Environments with action masks
    """

    def reset(self) -> VecEnvObs:
        _of_thread.latest = self
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        _of_thread.latest = self
        return self.venv.step_wait()


def with_masks(env: VecEnv) -> VecEnv:
    """
    :param env: Any environments
    :return: The same, where `MaskableR2VPO` finds the masks if they have some
    """
    return MaskSource(env) if is_masking_supported(env) else env


class MaskableR2VPO(maskable.MaskableR2VPO):
    """
    It finds the masks itself.
    """

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        :param observation: The observations that a `MaskSource` has just given
        :param state: Not used
        :param episode_start: Not used
        :param deterministic: Whether or not to return deterministic actions
        :param action_masks: Masks, those of that environment if ``None``
        :return: The actions, and ``state``
        """
        latest = getattr(_of_thread, "latest", None)
        if action_masks is None and latest is not None:
            action_masks = get_action_masks(latest)
        return super().predict(observation, state, episode_start, deterministic, action_masks)
