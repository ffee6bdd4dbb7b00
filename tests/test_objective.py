"""The mathematics against closed forms."""

import math

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_r2vpo import objective
from sb3_r2vpo.dual import DualVariable
from sb3_r2vpo.updater import Coefficients, Updater


def policy_gradient(policy: ActorCriticPolicy, batch: RolloutBufferSamples, weights: th.Tensor) -> list[th.Tensor]:
    """E[weight · ∇log π], one sample at a time."""
    parameters = list(policy.parameters())
    total = [th.zeros_like(p) for p in parameters]
    for obs, action, weight in zip(batch.observations, batch.actions, weights, strict=True):
        _, log_prob, _ = policy.evaluate_actions(obs[None], action[None])
        gradients = th.autograd.grad(log_prob.sum(), parameters, allow_unused=True)
        for t, g in zip(total, gradients, strict=True):
            if g is not None:
                t += weight * g / len(weights)
    return total


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("var_coef", [0.0, 0.7, 5.0])
def test_gradient_of_the_loss(var_coef, two_sided):
    """∇L = E[ρ (Â − 2λ(ρ − 1)) ∇log π], and E[(ρÂ − 2λ log ρ) ∇log π] where a two-sided penalty meets ρ < 1"""
    th.manual_seed(0)
    n, obs_dim, action_dim = 32, 3, 2
    box = spaces.Box(-1, 1, (action_dim,))
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (obs_dim,)), box, lambda _: 1e-3, net_arch=[8])
    obs, actions = th.randn(n, obs_dim), th.randn(n, action_dim)
    log_prob = policy.evaluate_actions(obs, actions)[1].detach()
    old_log_prob = log_prob + 0.5 * th.randn(n)
    advantages, zeros = th.randn(n), th.zeros(n)
    batch = RolloutBufferSamples(obs, actions, zeros, old_log_prob, advantages, zeros)

    coefficients = Coefficients(
        target_var=0.02, ent_coef=0.0, vf_coef=0.0, max_grad_norm=1.0, two_sided=two_sided, normalize_advantage=False
    )
    dual = DualVariable(var_coef, learned=False, dual_lr=0.02, bounds=(1.0, 10.0))
    loss, _ = Updater(policy, dual, coefficients).evaluate(batch)
    loss.backward()

    ratio = th.exp(log_prob - old_log_prob)
    brake = ratio * (ratio - 1)
    if two_sided:
        brake = th.where(ratio < 1, ratio.log(), brake)
    by_hand = policy_gradient(policy, batch, ratio * advantages - 2 * var_coef * brake)
    for parameter, expected in zip(policy.parameters(), by_hand, strict=True):
        gradient = th.zeros_like(parameter) if parameter.grad is None else parameter.grad
        th.testing.assert_close(-gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_sample_rests_where_its_effective_advantage_is_zero():
    advantages, var_coef = th.tensor([-1.0, 0.5, 3.0]), th.tensor(2.0)
    log_ratio = th.log(1 + advantages / (2 * var_coef)).requires_grad_()
    ratio = objective.policy_ratio(log_ratio)
    objective.lagrangian(
        objective.surrogate(ratio, advantages), objective.ratio_variance(ratio), var_coef, target_var=0.1
    ).backward()
    th.testing.assert_close(log_ratio.grad, th.zeros(3), rtol=0, atol=1e-6)


def test_the_two_sided_variance_bounds_the_variance_and_agrees_with_it_for_small_steps():
    log_ratio = 3 * th.randn(1000, generator=th.Generator().manual_seed(0), dtype=th.double)

    def variances(log_ratio: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        ratio = objective.policy_ratio(log_ratio)
        return objective.two_sided_variance(ratio, log_ratio), objective.ratio_variance(ratio)

    for sample in log_ratio:
        two_sided, variance = variances(sample[None])
        assert two_sided >= variance
    two_sided, variance = variances(1e-4 * log_ratio)
    assert two_sided.item() == pytest.approx(variance.item(), rel=1e-3)


@pytest.mark.parametrize("two_sided, kept", [(False, False), (True, True)])
def test_only_the_two_sided_variance_keeps_a_bad_sample(two_sided, kept):
    """Gradient ascent of ρÂ − λ·penalty in log ρ, with Â < −2λ: the paper's penalty lets the probability vanish."""
    advantage, var_coef = th.tensor([-3.0]), 0.5
    log_ratio = th.zeros(1, requires_grad=True)
    for _ in range(2000):
        ratio = objective.policy_ratio(log_ratio)
        penalty = objective.two_sided_variance(ratio, log_ratio) if two_sided else objective.ratio_variance(ratio)
        (gradient,) = th.autograd.grad(objective.surrogate(ratio, advantage) - var_coef * penalty, log_ratio)
        log_ratio = (log_ratio + 0.1 * gradient).detach().requires_grad_()
    assert (log_ratio.exp() > 0.05) == kept
    if kept:
        # It rests where ρ Â = 2λ log ρ
        assert (log_ratio.exp() * advantage).item() == pytest.approx((2 * var_coef * log_ratio).item(), abs=1e-4)


@pytest.mark.parametrize("two_sided, expected", [(False, 2.0), (True, -1.0)])
def test_only_the_variance_takes_entropy_for_a_moved_mean(two_sided, expected):
    """The slope in log σ of the penalty for β = N(0, 1) and π = N(d, σ²), in units of d²"""
    n, d = 100_000, 0.02
    actions = th.special.ndtri((th.arange(n, dtype=th.double) + 0.5) / n)  # Quantiles of β: their mean is an expectation
    log_std = th.zeros((), dtype=th.double, requires_grad=True)
    log_ratio = actions.square() / 2 - (actions - d).square() / (2 * (2 * log_std).exp()) - log_std
    ratio = objective.policy_ratio(log_ratio)
    penalty = objective.two_sided_variance(ratio, log_ratio) if two_sided else objective.ratio_variance(ratio)
    (slope,) = th.autograd.grad(penalty, log_std)
    assert slope.item() / d**2 == pytest.approx(expected, abs=0.05)


def test_no_gradient_flows_into_the_dual_variable():
    var_coef = th.tensor(2.0, requires_grad=True)
    variance = th.tensor(0.3, requires_grad=True)
    objective.lagrangian(th.tensor(1.0), variance, var_coef, target_var=0.1).backward()
    assert var_coef.grad is None
    assert variance.grad == -2.0


def exact_samples(beta: list[int], log_pi: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Every action as often as β prescribes (so that a mean is an expectation), and its log-ratio."""
    actions = th.repeat_interleave(th.arange(len(beta)), th.tensor(beta))
    log_beta = th.log(th.tensor(beta, dtype=th.double) / sum(beta))
    return actions, (log_pi - log_beta)[actions]


def test_variance_is_chi_squared_of_categoricals():
    beta = [5, 2, 2, 1]
    pi = th.tensor([0.3, 0.3, 0.2, 0.2], dtype=th.double)
    _, log_ratio = exact_samples(beta, pi.log())
    chi_squared = (pi.square() / (th.tensor(beta) / 10)).sum() - 1
    th.testing.assert_close(objective.ratio_variance(objective.policy_ratio(log_ratio)), chi_squared)


@pytest.mark.parametrize("mean, std", [(0.2, 1.0), (0.0, 0.9), (-0.3, 1.1)])
def test_variance_is_chi_squared_of_gaussians(mean, std):
    """∫π²/β − 1 for π = N(mean, std²), β = N(0, 1)"""
    th.manual_seed(0)
    beta, pi = th.distributions.Normal(0.0, 1.0), th.distributions.Normal(mean, std)
    samples = th.randn(2_000_000, dtype=th.double)
    variance = objective.ratio_variance(objective.policy_ratio(pi.log_prob(samples) - beta.log_prob(samples)))
    spread = 2 - std**2
    chi_squared = math.exp(mean**2 / spread) / (std * math.sqrt(spread)) - 1
    assert variance.item() == pytest.approx(chi_squared, rel=0.02)


def test_half_the_variance_is_the_kl_divergence_of_small_steps():
    beta = [4, 3, 2, 1]
    log_beta = th.log(th.tensor(beta, dtype=th.double) / 10)
    direction = th.tensor([1.0, -0.5, 0.3, -1.0], dtype=th.double)

    def relative_error(step: float) -> float:
        log_pi = th.log_softmax(log_beta + step * direction, dim=0)
        _, log_ratio = exact_samples(beta, log_pi)
        kl = (log_beta.exp() * (log_beta - log_pi)).sum()
        ratio = objective.policy_ratio(log_ratio)
        th.testing.assert_close(objective.approx_kl(log_ratio, ratio), kl)
        return abs(0.5 * objective.ratio_variance(ratio) / kl - 1).item()

    assert relative_error(0.1) < 0.1
    # The difference is of third order in the step, KL of second
    assert relative_error(0.01) == pytest.approx(relative_error(0.1) / 10, rel=0.2)


def test_ratio_is_the_exponential_up_to_its_bound():
    log_ratio = th.linspace(-50, objective.MAX_LOG_RATIO, 100, dtype=th.double)
    th.testing.assert_close(objective.policy_ratio(log_ratio), log_ratio.exp())


def test_ratio_beyond_its_bound_is_finite_and_keeps_its_gradient():
    log_ratio = th.tensor([objective.MAX_LOG_RATIO + 1e-3, 50.0, 1e4], requires_grad=True)
    ratio = objective.policy_ratio(log_ratio)
    (10.0 * objective.ratio_variance(ratio)).backward()
    assert th.isfinite(ratio).all() and th.isfinite(log_ratio.grad).all()
    assert (log_ratio.grad > 0).all()
    assert (ratio.diff() > 0).all()


def test_normalized_advantages():
    normalized = objective.normalize(th.tensor([1.0, 2.0, 6.0]))
    assert normalized.mean().item() == pytest.approx(0, abs=1e-6)
    assert normalized.std().item() == pytest.approx(1, abs=1e-6)
    assert objective.normalize(th.tensor([3.0])) == 3.0


def test_value_loss_clips_the_change_of_the_value():
    values, old_values, returns = th.tensor([2.0, 0.1]), th.tensor([0.0, 0.0]), th.tensor([1.0, 1.0])
    assert objective.value_loss(values, old_values, returns).item() == pytest.approx((1 + 0.81) / 2)
    assert objective.value_loss(values, old_values, returns, 0.5).item() == pytest.approx((0.25 + 0.81) / 2)


def test_entropy_is_estimated_where_it_has_no_closed_form():
    log_prob = th.tensor([-1.0, -3.0])
    assert objective.entropy_loss(None, log_prob) == -2.0
    assert objective.entropy_loss(th.tensor([0.5, 1.5]), log_prob) == -1.0
