"""How much of a step of the policy was signal: its correlation with advantages that it has not seen."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_r2vpo.objective import MAX_LOG_RATIO
from sb3_r2vpo.rollouts import Samples, without_padding
from sb3_r2vpo.updater import evaluate_actions

#: Share of the newest measurement in the running mean
NEWEST = 0.2


def correlate(x: th.Tensor, y: th.Tensor) -> th.Tensor:
    """
    :param x: One value for each sample
    :param y: Another one
    :return: Their correlation, not finite where one of them is constant
    """
    # Apple's GPUs have no float64
    precision = th.float32 if x.device.type == "mps" else th.float64
    return th.corrcoef(th.stack([x, y]).to(precision))[0, 1]


class StepSignal(nn.Module):
    """
    After each rollout: the correlation of the last step's log-ratio with the fresh advantages,

        c = corr(log π_k(a|s) − log π_{k−1}(a|s), Â_k(s, a)),    (s, a) ~ π_k

    It is the derivative of the return along the step from π_{k−1} to π_k, at its end and on samples that had no part in it.
    Positive: the step could have been longer. Negative: it went too far. Where the advantages are noise it is zero, up to
    1/√N for N samples, however well the step fitted the samples that it was made from.

    Both buffers are part of what is saved.

    :param policy: The policy, before its first step
    """

    previous_weights: th.Tensor
    correlation: th.Tensor

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.register_buffer("previous_weights", flat_weights(policy))
        self.register_buffer("correlation", th.tensor(math.nan, device=policy.device))

    @th.no_grad()
    def observe(
        self,
        policy: ActorCriticPolicy,
        rollout: Iterable[Samples],
        correlate: Callable[[th.Tensor, th.Tensor], th.Tensor] = correlate,
    ) -> float:
        """
        Measure the step that led to this policy, and remember the policy for the next one.

        :param policy: π_k, which has collected the rollout
        :param rollout: All samples of the rollout
        :param correlate: The correlation of two values of each sample, where other processes have samples too
        :return: The running mean of the correlation, 0 as long as there was no step
        """
        if self._was_step(policy):
            with other_weights(policy, self.previous_weights):
                log_ratios, advantages = zip(*(step_and_advantages(policy, batch) for batch in rollout), strict=True)
            newest = correlate(th.cat(log_ratios), th.cat(advantages))
            if th.isfinite(newest):  # Advantages that are all the same have none
                before = newest if th.isnan(self.correlation) else self.correlation
                self.correlation.copy_((1.0 - NEWEST) * before + NEWEST * newest)
        self.remember(policy)
        return 0.0 if th.isnan(self.correlation) else self.correlation.item()

    def _was_step(self, policy: ActorCriticPolicy) -> bool:
        """
        :param policy: The current policy
        :return: Whether other weights of the same network came before. Without a step the log-ratio would be rounding errors
        """
        weights = flat_weights(policy)
        return len(weights) == len(self.previous_weights) and not th.equal(weights, self.previous_weights)

    def remember(self, policy: ActorCriticPolicy) -> None:
        """
        :param policy: The policy from which the next step starts
        """
        self.previous_weights = flat_weights(policy)


def step_and_advantages(policy: ActorCriticPolicy, batch: Samples) -> tuple[th.Tensor, th.Tensor]:
    """
    :param policy: The policy before the step
    :param batch: Samples of the policy after it
    :return: The log-ratio of the step at each sample, and the advantages, of shape (batch_size,)
    """
    _, log_prob, _ = evaluate_actions(policy, batch)
    batch = without_padding(batch)
    return (batch.old_log_prob - log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), batch.advantages


def flat_weights(policy: ActorCriticPolicy) -> th.Tensor:
    """
    :param policy: A policy
    :return: A copy of its parameters as one vector
    """
    return th.cat([p.detach().flatten() for p in policy.parameters()])


@contextmanager
def other_weights(policy: ActorCriticPolicy, weights: th.Tensor) -> Iterator[None]:
    """
    The policy with other weights, in evaluation mode.

    :param policy: A policy
    :param weights: As of `flat_weights`
    """
    parameters, training, before = list(policy.parameters()), policy.training, flat_weights(policy)
    policy.set_training_mode(False)
    try:
        write(parameters, weights)
        yield
    finally:
        write(parameters, before)
        policy.set_training_mode(training)


def write(parameters: list[nn.Parameter], weights: th.Tensor) -> None:
    """
    :param parameters: Are overwritten in place
    :param weights: Their new values as one vector
    """
    parts = weights.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))
