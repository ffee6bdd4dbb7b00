"""The dual variable λ of the ratio-variance constraint: its value, its ascent, its bounds, its state."""

import math

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

#: ``V/δ`` enters the ascent clipped to this range
VIOLATION_RANGE = (0.1, 10.0)
#: δ for each degree of freedom of an action and N samples, in units of N^(1/4)
VARIANCE_PER_FREEDOM = 0.001
#: The largest δ, in units of the smallest
WIDENING = 3.0
#: Signal up to which a step counts as noise, in units of the 1/√N that is its standard error where there is none
STANDARD_ERRORS = 3.0


class DualVariable(nn.Module):
    """
    λ ≥ 0, the price of ratio variance (paper: https://arxiv.org/abs/2605.26784).

    A learned λ ascends on the violation of the constraint after each rollout's gradient steps, in the logarithm, so that it
    stays positive and a step means the same at every size of λ:

        λ ← clip(λ · clip(V/δ, 0.1, 10)^dual_lr, λ_min, λ_max)

    With V the variance over the last epoch, of each minibatch before its step. At a fixed λ that is about proportional to
    1/λ²: ``dual_lr=0.5`` is Newton's step, less is smoother.

    A fixed λ only changes by ``set``. The value is a buffer: it moves with the device and is part of the state dict.

    :param initial_value: λ at the start
    :param learned: Whether ``ascend`` moves λ
    :param dual_lr: Step of the ascent, per rollout
    :param bounds: (λ_min, λ_max) of a learned λ
    """

    value: th.Tensor

    def __init__(self, initial_value: float, learned: bool, dual_lr: float, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.learned = learned
        self.dual_lr = dual_lr
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.register_buffer("value", th.tensor(float(initial_value)))

    def ascend(self, variance: float, target_var: float) -> None:
        """
        One step of dual ascent; does nothing when λ is fixed.

        :param variance: V over the last epoch of a rollout's gradient steps
        :param target_var: The bound δ > 0 on V
        """
        if not self.learned:
            return
        low, high = VIOLATION_RANGE
        # A tensor becomes infinite where a float raises an error
        violation = th.tensor(variance / target_var, dtype=th.float64).clamp(low, high)
        self.set((self.value.item() * violation**self.dual_lr).clamp(*self.bounds).item())

    def stay_in_bounds(self) -> None:
        """Where the bounds are other ones than before: moves a learned λ into them."""
        if self.learned:
            self.value.clamp_(*self.bounds)

    @property
    def at_bound(self) -> int:
        """
        :return: -1 where λ rests on its lower bound, so that V may stay below δ, 1 on the upper one, so that V may stay
            above δ, else 0
        """
        low, high = self.bounds
        return int(self.value >= high) - int(self.value <= low)

    @th.no_grad()
    def set(self, value: float) -> None:
        """
        :param value: The new λ
        """
        self.value.fill_(value)


def auto_target_var(action_space: spaces.Space, n_samples: int) -> float:
    """
    The bound δ for steps that are noise, ``0.001 · d · N^(1/4)``: the d degrees of freedom of an action move apart, and their
    variances of the ratio add up; the more samples, the less of a step is noise, and the longer it may be.

    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param n_samples: N, the samples of a rollout
    :return: δ
    """
    return VARIANCE_PER_FREEDOM * degrees_of_freedom(action_space) * n_samples**0.25


def variance_worth_spending(correlation: float, n_samples: int, low: float, high: float) -> float:
    """
    The bound δ for the next update. A constraint alone is spent to the full, on noise as on signal. So it is tight where
    the last steps were noise, and widens in proportion to their signal:

        δ = clip(low · c√N / 3, low, high)

    A step that is too timid shows in a large c, and one that goes too far in a small or negative one: the bound finds its
    size between the two.

    :param correlation: c of the last steps with the advantages that came after them, see `StepSignal`
    :param n_samples: N, the samples of a rollout
    :param low: δ where they were noise
    :param high: The largest δ (``low`` where that is larger)
    :return: δ
    """
    return max(min(low * correlation * math.sqrt(n_samples) / STANDARD_ERRORS, high), low)


def degrees_of_freedom(action_space: spaces.Space) -> int:
    """
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: How many numbers can move a distribution of such actions independently: one for each dimension of a Box and for
        each bit, and for each discrete choice one less than there are
    """
    if isinstance(action_space, spaces.Discrete):
        return max(int(action_space.n) - 1, 1)
    if isinstance(action_space, spaces.MultiDiscrete):
        return max(int(np.sum(action_space.nvec - 1)), 1)
    return max(int(np.prod(action_space.shape)), 1)  # type: ignore[arg-type]


def parse_auto(var_coef: str, bounds: tuple[float, float]) -> float:
    """
    The initial value of a learned λ: ``"auto"`` or ``"auto_1.0"``, as SAC's ``ent_coef``.

    :param var_coef: The argument as given
    :param bounds: (λ_min, λ_max), which must hold the initial value
    :return: The initial value, that of a plain ``"auto"`` is 1 or the bound that is nearest to it
    :raises ValueError: When the string is neither, or its number is not inside the bounds
    """
    low, high = bounds
    if var_coef == "auto":
        return min(max(1.0, low), high)
    prefix, _, number = var_coef.partition("_")
    try:
        initial_value = float(number)
    except ValueError:
        initial_value = math.nan
    if prefix != "auto" or not math.isfinite(initial_value):
        raise ValueError(
            f"`var_coef` is {var_coef!r}: allowed are a float or a schedule (fixed coefficient), "
            "'auto' or, with an initial value, 'auto_1.0' (learned coefficient)"
        )
    if not low <= initial_value <= high:
        raise ValueError(
            f"`var_coef` is {var_coef!r} but `var_coef_bounds` is {bounds}: "
            "the initial value must lie inside the bounds, change one of them"
        )
    return initial_value
