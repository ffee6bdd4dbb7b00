"""The dual variable λ of the ratio-variance constraint: its value, its ascent, its bounds, its state."""

import math

import torch as th
from torch import nn

#: Relative violations ``V/δ − 1`` of the constraint enter the ascent clipped to this range
VIOLATION_RANGE = (-1.0, 5.0)


class DualVariable(nn.Module):
    """
    λ ≥ 0, the price of ratio variance (paper: https://arxiv.org/abs/2605.26784).

    A learned λ ascends on the violation of the constraint, in exponentiated form so that it stays positive and
    a step means the same at every size of λ:

        λ ← clip(λ · exp(dual_lr · clip(V/δ − 1, −1, 5)), λ_min, λ_max)

    A fixed λ only changes by ``set``. The value is a buffer: it moves with the device and is part of the state dict.

    :param initial_value: λ at the start
    :param learned: Whether ``ascend`` moves λ
    :param dual_lr: Step of the ascent, per gradient step
    :param bounds: (λ_min, λ_max) of a learned λ
    """

    value: th.Tensor

    def __init__(self, initial_value: float, learned: bool, dual_lr: float, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.learned = learned
        self.dual_lr = dual_lr
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.register_buffer("value", th.tensor(float(initial_value)))

    @th.no_grad()
    def ascend(self, variance: th.Tensor, target_var: float | th.Tensor, accept: th.Tensor) -> None:
        """
        One step of dual ascent, entirely on the device; does nothing when λ is fixed.

        :param variance: V of the minibatch, scalar tensor
        :param target_var: The bound δ > 0 on V
        :param accept: Scalar boolean tensor, False leaves λ as it is
        """
        if not self.learned:
            return
        violation = (variance / target_var - 1.0).clamp(*VIOLATION_RANGE)
        ascended = (self.value * th.exp(self.dual_lr * violation)).clamp(*self.bounds)
        self.value.copy_(th.where(accept, ascended, self.value))

    @th.no_grad()
    def set(self, value: float) -> None:
        """
        :param value: The new λ
        """
        self.value.fill_(value)


def parse_auto(var_coef: str, bounds: tuple[float, float], default: float = 2.0) -> float:
    """
    The initial value of a learned λ: ``"auto"`` or ``"auto_2.0"``, as SAC's ``ent_coef``.

    :param var_coef: The argument as given
    :param bounds: (λ_min, λ_max), which must hold the initial value
    :param default: Start of a plain ``"auto"``, moved into the bounds
    :return: The initial value
    :raises ValueError: When the string is neither, or its number is not inside the bounds
    """
    low, high = bounds
    if var_coef == "auto":
        return min(max(default, low), high)
    prefix, _, number = var_coef.partition("_")
    try:
        initial_value = float(number)
    except ValueError:
        initial_value = math.nan
    if prefix != "auto" or not math.isfinite(initial_value):
        raise ValueError(
            f"`var_coef` is {var_coef!r}: allowed are a float or a schedule (fixed coefficient), "
            "'auto' or, with an initial value, 'auto_2.0' (learned coefficient)"
        )
    if not low <= initial_value <= high:
        raise ValueError(
            f"`var_coef` is {var_coef!r} but `var_coef_bounds` is {bounds}: "
            "the initial value must lie inside the bounds, change one of them"
        )
    return initial_value
