"""Checks of constructor arguments: each error names the argument, the value given and what is allowed."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule


def is_number(value: Any) -> bool:
    """
    :param value: Anything
    :return: Whether it is a finite real number (a bool is not)
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        # An integer or a fraction beyond what a float can be
        return False


def python_number(value: Any) -> Any:
    """
    :param value: Anything
    :return: If it is a number, the same as an int or a float: torch takes no fractions, no integers of more than 64 bits,
        and not all of numpy's numbers
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) and abs(int(value)) < 2**63 else float(value)


def check_number(name: str, value: Any, allowed: str, condition: Callable[[float], bool] = lambda x: True) -> None:
    """
    :param name: Name of the argument
    :param value: The value given
    :param allowed: What is allowed, in words
    :param condition: The same as a function of a finite number
    :raises ValueError: When the value is no finite number or the condition does not hold
    """
    if not (is_number(value) and condition(value)):
        raise ValueError(f"`{name}` is {value!r}: it must be {allowed}")


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    :param name: Name of the argument
    :param value: The value given
    :param minimum: The smallest allowed value
    :raises ValueError: When the value is no integer, smaller, or beyond 2^31
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` is {value!r}: it must be an integer >= {minimum}")
    if int(value) >= 2**31:
        raise ValueError(f"`{name}` is {value!r}: it must be an integer < 2^31 = {2**31}")


def check_schedule(name: str, value: Any, allowed: str, condition: Callable[[float], bool]) -> None:
    """
    A schedule is checked where training starts, at a remaining progress of one.

    :param name: Name of the argument
    :param value: A number or a schedule
    :param allowed: What is allowed, in words
    :param condition: The same as a function of a finite number
    :raises ValueError: When it is neither, or its (first) value is not allowed
    """
    if not callable(value):
        check_number(name, value, f"{allowed}, or a schedule of such", condition)
        return
    first = value(1.0)
    if not (is_number(first) and condition(first)):
        raise ValueError(f"`{name}` is a schedule that starts at {first!r}: its values must be {allowed}")


def as_schedule(value: float | Schedule) -> FloatSchedule:
    """
    :param value: A checked number, of numpy's types too, or schedule
    :return: The same as a schedule
    """
    return FloatSchedule(value if callable(value) else float(value))


def check_bounds(name: str, value: Any) -> None:
    """
    :param name: Name of the argument
    :param value: The value given
    :raises ValueError: When it is not a pair of numbers ``0 < low <= high``
    """
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(is_number(x) for x in value)
    if not is_pair or not 0 < value[0] <= value[1]:
        raise ValueError(f"`{name}` is {value!r}: it must be a pair (low, high) with 0 < low <= high")
