import pytest
import torch as th

from sb3_r2vpo import objective
from sb3_r2vpo.dual import DualVariable, parse_auto

YES, NO = th.tensor(True), th.tensor(False)


@pytest.mark.parametrize("start", [0.05, 50.0])
def test_converges_to_the_known_multiplier_from_both_sides(start):
    """
    One state, four actions, E_β[Â] = 0: at fixed λ the optimum is ρ* = 1 + Â/(2λ) with V = E[Â²]/(4λ²),
    so V = δ at λ* = √(E[Â²]/(4δ)).
    """
    beta = th.full((4,), 0.25, dtype=th.double)
    advantages = th.tensor([1.0, 0.5, -0.25, -1.25], dtype=th.double)
    target_var = 0.05
    expected = ((beta * advantages.square()).sum() / (4 * target_var)).sqrt().item()

    dual = DualVariable(start, learned=True, dual_lr=0.02, bounds=(0.01, 100.0)).double()
    logits = beta.log().requires_grad_()
    optimizer = th.optim.Adam([logits], lr=0.02)
    for _ in range(3000):
        ratio = objective.policy_ratio(th.log_softmax(logits, 0) - beta.log())
        variance = objective.ratio_variance(ratio)
        loss = -objective.lagrangian(objective.surrogate(ratio, advantages), variance, dual.value, target_var)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dual.ascend(variance, target_var, YES)
    assert dual.value.item() == pytest.approx(expected, rel=0.01)
    assert variance.item() == pytest.approx(target_var, rel=0.01)


@pytest.mark.parametrize("variance, bound", [(1e6, 8.0), (0.0, 2.0)])
def test_stays_inside_its_bounds(variance, bound):
    dual = DualVariable(4.0, learned=True, dual_lr=0.1, bounds=(2.0, 8.0))
    for _ in range(100):
        dual.ascend(th.tensor(variance), 0.02, YES)
        assert 2.0 <= dual.value.item() <= 8.0
    assert dual.value.item() == bound


def test_one_step_of_ascent():
    dual = DualVariable(4.0, learned=True, dual_lr=0.1, bounds=(0.1, 100.0))
    dual.ascend(th.tensor(0.03), 0.02, YES)
    assert dual.value.item() == pytest.approx(4.0 * th.exp(th.tensor(0.1 * 0.5)).item())


def test_the_step_of_an_outlier_is_limited():
    dual = DualVariable(4.0, learned=True, dual_lr=0.1, bounds=(0.1, 100.0))
    dual.ascend(th.tensor(1e9), 0.02, YES)
    assert dual.value.item() == pytest.approx(4.0 * th.exp(th.tensor(0.5)).item())


def test_does_not_move_when_not_accepted_or_fixed():
    dual = DualVariable(4.0, learned=True, dual_lr=0.1, bounds=(0.1, 100.0))
    dual.ascend(th.tensor(float("nan")), 0.02, NO)
    assert dual.value == 4.0
    fixed = DualVariable(4.0, learned=False, dual_lr=0.1, bounds=(0.1, 100.0))
    fixed.ascend(th.tensor(1.0), 0.02, YES)
    assert fixed.value == 4.0
    fixed.set(0.0)
    assert fixed.value == 0.0


def test_auto_and_its_initial_value():
    assert parse_auto("auto", (1.0, 100.0)) == 2.0
    assert parse_auto("auto", (5.0, 100.0)) == 5.0
    assert parse_auto("auto", (0.1, 1.0)) == 1.0
    assert parse_auto("auto_7.5", (1.0, 100.0)) == 7.5


@pytest.mark.parametrize("var_coef", ["autoo", "auto_", "auto_x", "fixed_2.0", "", "2.0", "auto_nan", "auto_inf"])
def test_what_is_not_auto(var_coef):
    with pytest.raises(ValueError, match=f"`var_coef` is '{var_coef}'.*'auto_2.0'"):
        parse_auto(var_coef, (1.0, 100.0))


def test_initial_value_outside_the_bounds():
    with pytest.raises(ValueError, match=r"'auto_0.5' but `var_coef_bounds` is \(1.0, 100.0\)"):
        parse_auto("auto_0.5", (1.0, 100.0))
