"""One gradient step of R2VPO on one minibatch."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_r2vpo import objective
from sb3_r2vpo.dual import DualVariable
from sb3_r2vpo.rollouts import Samples, real_samples, with_first_states_reset, without_padding


class Coefficients(NamedTuple):
    """
    What a gradient step needs besides the minibatch; constant over one rollout. In a compiled step the numbers are
    scalar tensors, so that it serves for all their values.

    :param target_var: The bound δ on the ratio variance
    :param two_sided: Whether ``two_sided_variance`` takes the place of ``ratio_variance``
    :param ent_coef: Weight of the entropy loss
    :param vf_coef: Weight of the value loss
    :param max_grad_norm: Global gradient norm above which the gradient is scaled down
    :param advantage_scale: What the (normalized) advantages are multiplied by
    :param normalize_advantage: Whether to normalize the advantages of the minibatch
    :param clip_range_vf: How far a value may move from its old one (no limit when ``None``)
    :param max_kl: A minibatch whose approximate KL divergence is above is not stepped on
    """

    target_var: float | th.Tensor
    ent_coef: float | th.Tensor
    vf_coef: float | th.Tensor
    max_grad_norm: float | th.Tensor
    advantage_scale: float | th.Tensor = 1.0
    two_sided: bool = True
    normalize_advantage: bool = True
    clip_range_vf: float | th.Tensor | None = None
    max_kl: float | th.Tensor = math.inf


class Metrics(NamedTuple):
    """
    Scalar tensors that a gradient step leaves on the device. The losses are minimized, as in SB3.

    The last one, ``ratio_max``, is the only one that cannot be averaged over parts of a minibatch.
    """

    loss: th.Tensor
    policy_gradient_loss: th.Tensor
    value_loss: th.Tensor
    entropy_loss: th.Tensor
    gradient_norm: th.Tensor
    approx_kl: th.Tensor
    ratio_variance: th.Tensor
    ratio_penalty: th.Tensor
    ratio_max: th.Tensor


class Updater:
    """
    Ascends the Lagrangian in the policy's weights, one minibatch at a call.

    Decides on the device whether to take the step: a minibatch with a non-finite loss or gradient, or with too
    large a KL divergence, changes neither weights nor optimizer state. Its metrics tell.

    :param policy: The policy, with its optimizer
    :param dual: The dual variable λ
    :param coefficients: Everything else, constant over one rollout
    """

    #: What a subclass with another objective replaces
    surrogate = staticmethod(objective.surrogate)
    #: Where minibatches are parts of larger ones, with other parts in other processes: makes a vector their mean, in place
    average: Callable[[th.Tensor], None] | None = None

    def __init__(self, policy: ActorCriticPolicy, dual: DualVariable, coefficients: Coefficients) -> None:
        self.policy = policy
        self.dual = dual
        self.coefficients = coefficients

    def __call__(self, batch: Samples) -> th.Tensor:
        """
        :param batch: A minibatch
        :return: The metrics before the step as one tensor, in the order of ``Metrics``
        """
        self.policy.optimizer.zero_grad()
        accept, metrics = self.backward(batch)
        step_if(self.policy.optimizer, accept)
        return metrics

    def finish(self) -> None:
        """To be called after the last minibatch of a rollout: here nothing is left to do."""

    def backward(self, batch: Samples) -> tuple[th.Tensor, th.Tensor]:
        """
        All of the step but the optimizer's part: leaves the clipped gradient in the parameters' ``grad``.
        `CompiledUpdater` compiles this.

        :param batch: A minibatch
        :return: Whether the optimizer is to take the step, scalar boolean tensor, and the metrics as one tensor
        """
        metrics = self.differentiate(batch)
        if self.average is not None:
            gradients = [param.grad for param in self.policy.parameters() if param.grad is not None]
            vector = flatten(gradients, metrics)
            self.average(vector[:-1])
            averages, metrics = unflatten(vector, gradients)
            th._foreach_copy_(gradients, averages)
        return self.clip(metrics)

    def differentiate(self, batch: Samples) -> Metrics:
        """
        Leaves the gradient in the parameters' ``grad``.

        :param batch: A minibatch
        :return: The metrics (gradient norm not yet known)
        """
        loss, metrics = self.evaluate(batch)
        loss.backward()
        return metrics

    def clip(self, metrics: Metrics) -> tuple[th.Tensor, th.Tensor]:
        """
        Clips the gradient in the parameters' ``grad``.

        :param metrics: The metrics (gradient norm not yet known)
        :return: Whether the optimizer is to take the step, scalar boolean tensor, and the metrics as one tensor
        """
        c = self.coefficients
        gradient_norm = clip_gradient(self.policy, c.max_grad_norm)
        accept = th.isfinite(metrics.loss) & th.isfinite(gradient_norm) & (metrics.approx_kl <= c.max_kl)
        return accept, th.stack(metrics._replace(gradient_norm=gradient_norm))

    def evaluate(self, batch: Samples) -> tuple[th.Tensor, Metrics]:
        """
        :param batch: A minibatch
        :return: The loss, still to be differentiated, and the metrics (gradient norm not yet known)
        """
        c = self.coefficients
        values, log_prob, entropy = evaluate_actions(self.policy, batch)
        batch = without_padding(batch)
        advantages = objective.normalize(batch.advantages) if c.normalize_advantage else batch.advantages
        advantages = c.advantage_scale * advantages

        log_ratio = log_prob - batch.old_log_prob
        ratio = objective.policy_ratio(log_ratio)
        surrogate = self.surrogate(ratio, advantages)
        variance = objective.ratio_variance(ratio)
        penalty = objective.two_sided_variance(ratio, log_ratio) if c.two_sided else variance
        lagrangian = objective.lagrangian(surrogate, penalty, self.dual.value, c.target_var)

        value_loss = objective.value_loss(values.flatten(), batch.old_values, batch.returns, c.clip_range_vf)
        entropy_loss = objective.entropy_loss(entropy, log_prob)
        loss = -lagrangian + c.ent_coef * entropy_loss + c.vf_coef * value_loss

        metrics = Metrics(
            loss=loss,
            policy_gradient_loss=-surrogate,
            value_loss=value_loss,
            entropy_loss=entropy_loss,
            gradient_norm=th.zeros_like(loss),
            approx_kl=objective.approx_kl(log_ratio, ratio),
            ratio_variance=variance,
            ratio_penalty=penalty,
            ratio_max=ratio.max(),
        )
        return loss, Metrics(*(metric.detach() for metric in metrics))


def evaluate_actions(policy: ActorCriticPolicy, batch: Samples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    What a buffer holds beyond SB3's (action masks, the states of an LSTM) goes to the policy under its name, if it has such
    an argument.

    :param policy: The current policy
    :param batch: Samples of any policy
    :return: Values of the observations, log-probabilities of the actions, and entropies (``None`` without closed form),
        without those of padding
    """
    actions = batch.actions
    if isinstance(policy.action_space, spaces.Discrete):
        # Convert discrete action from float to long
        actions = actions.long().flatten()
    elif isinstance(policy.action_space, spaces.MultiBinary):
        # Their distribution takes no integers, and the buffers of LSTM policies hold them as the environment has them
        actions = actions.to(batch.old_log_prob.dtype)
    batch = with_first_states_reset(batch)
    others = {name: value for name, value in batch._asdict().items() if name not in (*RolloutBufferSamples._fields, "mask")}
    if others:
        # A buffer of the user's own may hold more than the policy asks for
        asked = inspect.signature(policy.evaluate_actions).parameters
        others = {name: value for name, value in others.items() if name in asked}
    with unchanged(policy.action_dist):
        values, log_prob, entropy = policy.evaluate_actions(batch.observations, actions, **others)
    if (real := real_samples(batch)) is None:
        return values, log_prob, entropy
    return values[real], log_prob[real], None if entropy is None else entropy[real]


def flatten(gradients: Sequence[th.Tensor], metrics: Metrics) -> th.Tensor:
    """
    :param gradients: Gradients
    :param metrics: Metrics
    :return: All of them in one vector
    """
    return th.cat([*(gradient.flatten() for gradient in gradients), th.stack(metrics)])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> tuple[list[th.Tensor], Metrics]:
    """
    The inverse of `flatten`.

    :param vector: Gradients and metrics in one vector
    :param like: Tensors of the gradients' shapes
    :return: Gradients and metrics
    """
    *parts, metrics = vector.split([*(tensor.numel() for tensor in like), len(Metrics._fields)])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)], Metrics(*metrics)


@contextmanager
def unchanged(distribution: Distribution) -> Iterator[None]:
    """
    SB3's distributions keep their last parameters, and with them the autograd graph or what a compiler traces
    with: the policy could then be neither copied nor used.

    :param distribution: What to leave as it was
    """
    before = dict(vars(distribution))
    try:
        yield
    finally:
        vars(distribution).clear()
        vars(distribution).update(before)


@th.no_grad()
def clip_gradient(policy: ActorCriticPolicy, max_norm: float | th.Tensor) -> th.Tensor:
    """
    ``th.nn.utils.clip_grad_norm_``, which takes no tensor for ``max_norm``.

    :param policy: The policy, gradients in place
    :param max_norm: Global norm above which they are scaled down
    :return: The norm before
    """
    gradients = [param.grad for param in policy.parameters() if param.grad is not None]
    norm = th.linalg.vector_norm(th.stack([th.linalg.vector_norm(gradient) for gradient in gradients]))
    th._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def use_fused_adam(optimizer: th.optim.Optimizer) -> None:
    """
    Let Adam run as one fused kernel where torch offers it and the user has not chosen otherwise. To be called again
    after every ``load_state_dict``, which puts back the flag of whoever saved.

    :param optimizer: The policy's optimizer; any but Adam and AdamW is left alone
    """
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW):
        return
    for group in optimizer.param_groups:
        on_supported_device = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in group["params"])
        chosen_by_user = group["fused"] is False or any(group[flag] for flag in ("foreach", "capturable", "differentiable"))
        if chosen_by_user or not on_supported_device:
            continue
        group["fused"] = True
        for param in group["params"]:
            state = optimizer.state[param] if param in optimizer.state else {}
            if "step" in state:
                # The plain Adam counts on the CPU, the fused one on the parameter's device
                state["step"] = state["step"].to(param.device, th.float32)


def step_if(optimizer: th.optim.Optimizer, accept: th.Tensor) -> None:
    """
    Step the optimizer only where ``accept`` holds. Fused optimizers decide on the device, the others wait for it.

    :param optimizer: The policy's optimizer, gradients in place
    :param accept: Scalar boolean tensor
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        # The switch that torch.amp's GradScaler uses: the kernel does nothing where `found_inf` is one
        optimizer.found_inf = (~accept).float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif accept:
        optimizer.step()
