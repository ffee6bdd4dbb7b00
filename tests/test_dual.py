import pytest
import torch as th
from gymnasium import spaces

from sb3_r2vpo import objective
from sb3_r2vpo.dual import DualVariable, auto_target_var, degrees_of_freedom, parse_auto, variance_worth_spending


@pytest.mark.parametrize("dual_lr", [0.1, 0.5])
@pytest.mark.parametrize("start", [0.05, 50.0])
def test_converges_to_the_known_multiplier_from_both_sides(start, dual_lr):
    """
    One state, four actions, E_β[Â] = 0: at fixed λ the optimum is ρ* = 1 + Â/(2λ) with V = E[Â²]/(4λ²),
    so V = δ at λ* = √(E[Â²]/(4δ)).
    """
    beta = th.full((4,), 0.25, dtype=th.double)
    advantages = th.tensor([1.0, 0.5, -0.25, -1.25], dtype=th.double)
    target_var = 0.05
    expected = ((beta * advantages.square()).sum() / (4 * target_var)).sqrt().item()

    dual = DualVariable(start, learned=True, dual_lr=dual_lr, bounds=(0.01, 100.0)).double()
    for _ in range(100):
        logits = beta.log().requires_grad_()
        optimizer = th.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

        def evaluate(logits=logits, optimizer=optimizer):
            ratio = objective.policy_ratio(th.log_softmax(logits, 0) - beta.log())
            variance = objective.ratio_variance(ratio)
            loss = -objective.lagrangian(objective.surrogate(ratio, advantages), variance, dual.value, target_var)
            optimizer.zero_grad()
            loss.backward()
            evaluate.variance = variance.item()
            return loss

        optimizer.step(evaluate)
        evaluate()
        dual.ascend(evaluate.variance, target_var)
    assert dual.value.item() == pytest.approx(expected, rel=0.01)
    assert evaluate.variance == pytest.approx(target_var, rel=0.01)


@pytest.mark.parametrize("variance, bound, side", [(1e6, 8.0, 1), (0.0, 0.05, -1)])
def test_stays_inside_its_bounds_and_says_so(variance, bound, side):
    dual = DualVariable(4.0, learned=True, dual_lr=0.1, bounds=(0.05, 8.0))
    assert dual.at_bound == 0
    for _ in range(100):
        dual.ascend(variance, 0.02)
        assert th.tensor(0.05) <= dual.value <= 8.0
    assert dual.value == th.tensor(bound)
    assert dual.at_bound == side


def test_one_step_of_ascent():
    dual = DualVariable(4.0, learned=True, dual_lr=0.5, bounds=(0.1, 100.0))
    dual.ascend(0.08, 0.02)
    # V falls with the square of λ
    assert dual.value.item() == pytest.approx(4.0 * 2.0)


def test_the_step_of_an_outlier_is_limited():
    dual = DualVariable(4.0, learned=True, dual_lr=0.5, bounds=(0.1, 100.0))
    dual.ascend(1e9, 0.02)
    assert dual.value.item() == pytest.approx(4.0 * 10**0.5)


def test_does_not_move_when_fixed():
    fixed = DualVariable(4.0, learned=False, dual_lr=0.1, bounds=(0.1, 100.0))
    fixed.ascend(1.0, 0.02)
    assert fixed.value == 4.0
    fixed.set(0.0)
    assert fixed.value == 0.0


@pytest.mark.parametrize("n_samples", [65_536, 4096, 64])
@pytest.mark.parametrize(
    "standard_errors, expected", [(-15, 0.02), (0.0, 0.02), (2.9, 0.02), (6, 0.04), (14.7, 0.098), (27, 0.1)]
)
def test_variance_is_spent_where_there_is_signal(standard_errors, expected, n_samples):
    correlation = standard_errors / n_samples**0.5
    assert variance_worth_spending(correlation, n_samples, 0.02, 0.1) == pytest.approx(expected)
    assert variance_worth_spending(correlation, n_samples, 0.3, 0.1) == 0.3


@pytest.mark.parametrize(
    "space, expected",
    [
        (spaces.Box(-1, 1, (6,)), 6),
        (spaces.Box(-1, 1, (2, 3)), 6),
        (spaces.Discrete(2), 1),
        (spaces.Discrete(5), 4),
        (spaces.Discrete(1), 1),
        (spaces.MultiDiscrete([2, 5, 3]), 7),
        (spaces.MultiBinary(4), 4),
        (spaces.MultiBinary([2, 2]), 4),
    ],
    ids=str,
)
def test_degrees_of_freedom(space, expected):
    assert degrees_of_freedom(space) == expected
    assert auto_target_var(space, 4096) == pytest.approx(0.008 * expected)
    assert auto_target_var(space, 65_536) == pytest.approx(0.016 * expected)


def test_the_variances_of_independent_choices_add_up():
    """Each dimension of a Gaussian that moves by the same part of its deviation, each bit that moves by the same odds."""
    th.manual_seed(0)
    gaussian = th.randn(1_000_000, 4, dtype=th.double)
    log_ratios = 0.05 * gaussian - 0.05**2 / 2
    variances = [objective.ratio_variance(log_ratios[:, :n].sum(1).exp()).item() for n in (1, 2, 4)]
    assert variances == pytest.approx([variances[0], 2 * variances[0], 4 * variances[0]], rel=0.03)


def test_auto_and_its_initial_value():
    assert parse_auto("auto", (0.1, 100.0)) == 1.0
    assert parse_auto("auto", (5.0, 100.0)) == 5.0
    assert parse_auto("auto", (0.1, 0.5)) == 0.5
    assert parse_auto("auto_7.5", (1.0, 100.0)) == 7.5


@pytest.mark.parametrize("var_coef", ["autoo", "auto_", "auto_x", "fixed_2.0", "", "2.0", "auto_nan", "auto_inf"])
def test_what_is_not_auto(var_coef):
    with pytest.raises(ValueError, match=f"`var_coef` is '{var_coef}'.*'auto_1.0'"):
        parse_auto(var_coef, (1.0, 100.0))


def test_initial_value_outside_the_bounds():
    with pytest.raises(ValueError, match=r"'auto_0.5' but `var_coef_bounds` is \(1.0, 100.0\)"):
        parse_auto("auto_0.5", (1.0, 100.0))


@pytest.mark.parametrize(("variance", "bound"), [(1.0, 100.0), (1e-4, 0.05)])
def test_a_huge_step_ends_at_a_bound(variance, bound):
    dual = DualVariable(1.0, learned=True, dual_lr=1e30, bounds=(0.05, 100.0))
    dual.ascend(variance, 0.03)
    assert dual.value.item() == pytest.approx(bound)
