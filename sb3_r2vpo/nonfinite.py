"""What to say when a gradient step had to be skipped."""

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_r2vpo.updater import Metrics


class NonFiniteUpdateError(ValueError):
    """A loss or gradient was NaN or infinite. The minibatch was skipped, the weights are as good as before it."""


def check_finite(steps: np.ndarray, buffer: RolloutBuffer, num_timesteps: int) -> None:
    """
    :param steps: Metrics of the gradient steps of one update, of shape (n_gradient_steps, n_metrics)
    :param buffer: The rollout
    :param num_timesteps: Number of environment steps so far
    :raises NonFiniteUpdateError: When a loss or gradient was not finite
    """
    finite = np.isfinite(steps)
    skipped = np.flatnonzero(~(Metrics(*finite.T).loss & Metrics(*finite.T).gradient_norm))
    if len(skipped) == 0:
        return
    in_step = [name.replace("_", " ") for name, ok in zip(Metrics._fields, finite[skipped[0]], strict=True) if not ok]
    in_rollout = not_finite_in(buffer)
    advice = (
        "Look for the source in the environment, e.g. with VecCheckNan."
        if in_rollout
        else "Try a lower `learning_rate`, a lower `max_grad_norm` or a lower `target_var`."
    )
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
