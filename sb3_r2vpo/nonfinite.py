"""What is not finite: an observation ends the rollout, a gradient step is skipped and ends training after the update."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_r2vpo.updater import Metrics

#: Numbers whose squares add up to less are finite, as float32 too
LARGEST_SQUARES = 1e38


class NonFiniteUpdateError(ValueError):
    """A loss or gradient was NaN or infinite. The minibatch was skipped, the weights are as good as before it."""


class NonFiniteObservationError(ValueError):
    """An observation was NaN or infinite. The policy has not seen it, the environment has got no action for it."""


class FiniteObservations(BaseCallback):
    """
    Ends training at the first observation that is NaN or infinite, before the policy makes an action of it. Where the
    policy's features extractor makes finite features of it (with ``th.nan_to_num``), it is meant to be there.

    :param world_size: Number of processes that train the model
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size

    def _on_rollout_start(self) -> None:
        # The only one of a reset
        self._check(self.model._last_obs)

    def _on_step(self) -> bool:
        self._check(self.locals["new_obs"])
        return True

    def _check(self, observations: Any) -> None:
        """
        :param observations: Observations of all environments as the policy gets them, or a dictionary of such
        :raises NonFiniteObservationError: When one of them is not finite
        """
        if all(map(_is_finite, _named(observations).values())):
            return
        normalizer = self.model.get_vec_normalize_env()
        if not _has_spoilt_statistics(normalizer) and self._features_are_finite(observations):
            return
        # After normalization those of all environments may be bad
        originals = observations if normalizer is None else normalizer.get_original_obs()
        bad = {name: [i for i, row in enumerate(array) if not _is_finite(row)] for name, array in _named(originals).items()}
        where = [f"`{name}` of environment {rows[0]}" for name, rows in bad.items() if rows]
        step = self.model.num_timesteps // (self.model.n_envs * self.world_size)
        raise NonFiniteObservationError(
            f"Not finite: {' and '.join(where) or '`observations` after normalization'}, at step {step} of the environment "
            f"({self.model.num_timesteps} timesteps). The policy got no such observation and the weights are finite. "
            "Look for the source in the environment."
        )

    @th.no_grad()
    def _features_are_finite(self, observations: Any) -> bool:
        """
        :param observations: Observations of all environments, or a dictionary of such
        :return: Whether the policy's features of them are finite
        """
        policy = cast(ActorCriticPolicy, self.model.policy)
        features = policy.extract_features(policy.obs_to_tensor(observations)[0])
        return all(bool(th.isfinite(x).all()) for x in (features if isinstance(features, tuple) else (features,)))


def _has_spoilt_statistics(normalizer: VecNormalize | None) -> bool:
    """
    :param normalizer: What normalizes the observations, if anything does
    :return: Whether one bad observation has made its statistics bad, and with them all observations to come
    """
    if normalizer is None or not normalizer.norm_obs:
        return False
    statistics = normalizer.obs_rms.values() if isinstance(normalizer.obs_rms, dict) else [normalizer.obs_rms]
    return not all(np.isfinite(x.mean).all() and np.isfinite(x.var).all() for x in statistics)


def _named(observations: Any) -> dict[str, np.ndarray]:
    return observations if isinstance(observations, dict) else {"observations": observations}


def _is_finite(array: np.ndarray) -> bool:
    """
    :param array: Of any shape and type
    :return: Whether the policy, whose numbers are float32, sees it as finite. It is asked at each step of a rollout
    """
    if array.dtype.kind != "f" or np.vdot(array, array) < LARGEST_SQUARES:
        return True
    if array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    return bool(np.isfinite(array).all())


def check_finite(
    steps: np.ndarray, buffer: RolloutBuffer, num_timesteps: int, everywhere: Callable[[list[str]], list[str]]
) -> None:
    """
    :param steps: Metrics of the gradient steps of one update, of shape (n_gradient_steps, n_metrics)
    :param buffer: The rollout
    :param num_timesteps: Number of environment steps so far
    :param everywhere: From what was found in this process to what was found in any
    :raises NonFiniteUpdateError: When a loss or gradient was not finite
    """
    finite = np.isfinite(steps)
    skipped = np.flatnonzero(~(Metrics(*finite.T).loss & Metrics(*finite.T).gradient_norm))
    if len(skipped) == 0:
        return
    in_step = [name.replace("_", " ") for name, ok in zip(Metrics._fields, finite[skipped[0]], strict=True) if not ok]
    in_rollout = everywhere(not_finite_in(buffer))
    if in_rollout:
        advice = "Look for the source in the environment, e.g. with VecCheckNan."
    elif set(in_step) <= {"loss", "gradient norm"}:
        advice = "Its parts are finite: try a `vf_coef`, an `ent_coef` or a `var_coef` closer to zero, or smaller rewards."
    else:
        advice = "Try a lower `learning_rate`, a lower `max_grad_norm` or a lower `target_var`."
    raise NonFiniteUpdateError(
        f"{' and '.join(in_step)} not finite in gradient step {skipped[0] + 1} of {len(steps)} "
        f"after {num_timesteps} timesteps ({len(skipped)} such steps). "
        f"Not finite in the rollout: {', '.join(in_rollout) or 'nothing'}. "
        f"Those steps were skipped, weights, optimizer state and `var_coef` are finite. {advice}"
    )


def not_finite_in(buffer: RolloutBuffer) -> list[str]:
    """
    :param buffer: The rollout
    :return: Names of what has NaN or infinite values in it
    """
    observations = buffer.observations if isinstance(buffer.observations, dict) else {"observations": buffer.observations}
    arrays = dict(rewards=buffer.rewards, returns=buffer.returns, values=buffer.values, actions=buffer.actions)
    return [name for name, array in {**observations, **arrays}.items() if not np.isfinite(array).all()]
