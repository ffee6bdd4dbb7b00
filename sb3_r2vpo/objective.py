"""
The mathematics of R2VPO, as functions of tensors: no policy, no optimizer, no logger.

Paper: https://arxiv.org/abs/2605.26784. With the policy ratio ``ρ = π_θ(a|s) / β(a|s)`` against the policy β
that collected the sample, R2VPO solves

    max_θ  E_β[ρ Â]    subject to    Var_β[ρ] = E_β[(ρ − 1)²] ≤ δ

by ascending the Lagrangian ``L(θ, λ) = E_β[ρ Â] − λ (E_β[(ρ − 1)²] − δ)`` in θ. Its gradient is

    ∇_θ L = E_β[ρ (Â − 2λ(ρ − 1)) ∇ log π_θ]

so that a sample is braked in proportion to how far it has moved, and comes to rest at ``ρ* = 1 + Â / (2λ)``.
All tensors are of shape ``(batch_size,)`` unless stated otherwise.
"""

import torch as th
from torch.nn import functional as F

#: From here on the ratio grows linearly in the log-ratio instead of exponentially (e^10 ≈ 22026)
MAX_LOG_RATIO = 10.0


def policy_ratio(log_ratio: th.Tensor) -> th.Tensor:
    """
    ``ρ = exp(log π_θ(a|s) − log β(a|s))``, continued by its tangent above ``MAX_LOG_RATIO``.

    A runaway sample can thus not overflow, and unlike with a clamp its gradient never vanishes:
    the penalty keeps pulling it back.

    :param log_ratio: ``log π_θ(a|s) − log β(a|s)``
    :return: The ratio, non-negative
    """
    beyond = F.relu(log_ratio - MAX_LOG_RATIO)
    return th.exp(log_ratio.clamp(max=MAX_LOG_RATIO)) * (1.0 + beyond)


def surrogate(ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """
    The policy gradient's surrogate objective ``E_β[ρ Â]``.

    :return: Scalar tensor
    """
    return (ratio * advantages).mean()


def ratio_variance(ratio: th.Tensor) -> th.Tensor:
    """
    ``V = E_β[(ρ − 1)²]``: the variance of the ratio, whose mean under β is one. It equals χ²(π‖β),
    and twice KL(β‖π) to second order.

    :return: Scalar tensor
    """
    return (ratio - 1.0).square().mean()


def two_sided_variance(ratio: th.Tensor, log_ratio: th.Tensor) -> th.Tensor:
    """
    ``D = E_β[max((ρ − 1)², (log ρ)²)]``, which is ``(ρ − 1)²`` above one and ``(log ρ)²`` below.

    V and D agree to second order, and ``D ≥ V``: what bounds D bounds V. Below one they differ in two things:

    - The gradient of ``(ρ − 1)²`` vanishes with ρ, so that for ``Â < −2λ`` nothing keeps a sample. That of ``(log ρ)²`` grows,
      and the sample rests where ``ρ Â = 2λ log ρ``.
    - Where the mean of a Gaussian has moved by d standard deviations, V asks for a smaller one (``∂V/∂log σ = 2d²``) and
      takes entropy away for noise in the mean. D asks for a larger one (``∂D/∂log σ = −d²``).

    :param ratio: ρ
    :param log_ratio: ``log ρ``
    :return: Scalar tensor
    """
    return th.where(ratio < 1.0, log_ratio, ratio - 1.0).square().mean()


def lagrangian(surrogate: th.Tensor, variance: th.Tensor, var_coef: th.Tensor, target_var: float | th.Tensor) -> th.Tensor:
    """
    ``L(θ, λ) = E_β[ρ Â] − λ (V − δ)``, to be ascended in θ. No gradient flows into λ.

    :param surrogate: ``E_β[ρ Â]``, scalar tensor
    :param variance: ``V``, or ``D`` in its place, scalar tensor
    :param var_coef: The dual variable λ, scalar tensor
    :param target_var: The bound δ on V
    :return: Scalar tensor
    """
    return surrogate - var_coef.detach() * (variance - target_var)


def approx_kl(log_ratio: th.Tensor, ratio: th.Tensor) -> th.Tensor:
    """
    The low-variance estimate of KL(β‖π) that SB3's PPO uses too, see http://joschu.net/blog/kl-approx.html

    :return: Scalar tensor, non-negative
    """
    return ((ratio - 1.0) - log_ratio).mean()


def normalize(advantages: th.Tensor) -> th.Tensor:
    """
    Advantages with zero mean and unit standard deviation, so that λ has no units. A single sample is left as it is.
    """
    if len(advantages) <= 1:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def value_loss(
    values: th.Tensor, old_values: th.Tensor, returns: th.Tensor, clip_range_vf: float | th.Tensor | None = None
) -> th.Tensor:
    """
    Squared error against the TD(λ) returns, as in SB3's PPO.

    :param values: The current critic's values
    :param old_values: The values at the time of the rollout
    :param returns: TD(λ) targets
    :param clip_range_vf: How far a value may move from its old one (no limit when ``None``)
    :return: Scalar tensor
    """
    if clip_range_vf is not None:
        values = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)  # type: ignore[arg-type]
    return F.mse_loss(returns, values)


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor) -> th.Tensor:
    """
    Negative mean entropy, estimated from the samples when the distribution has no closed form.

    :return: Scalar tensor
    """
    return -th.mean(-log_prob if entropy is None else entropy)
