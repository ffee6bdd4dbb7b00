"""What was compiled, and where it fits."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

from sb3_r2vpo.fast.guard import Guard, Refusal

T = TypeVar("T")

#: For how many different constants to compile. Whoever changes them more often would wait more than gain.
MAX_PROGRAMS = 8


class Programs:
    """
    Compiled code with what it takes for constant. It does not travel: copies and pickles are empty.

    :param what: What it computes, in words
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.compiled: list[tuple[Any, Guard, Any]] = []
        #: Whether something could not be compiled; it is not tried again
        self.failed = False
        self._guard: Guard | None = None
        self._told: set[str] = set()

    def __len__(self) -> int:
        return len(self.compiled)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.what,)

    def guard(self, *modules: nn.Module) -> Guard:
        """
        :param modules: The modules that are compiled
        :return: A guard of them as they are now
        :raises Refusal: When a module keeps something whose changes would not be noticed
        """
        if self._guard is None or self._guard.modules != modules or not self._guard.holds():
            self._guard = None
            self._guard = Guard(*modules)
        return self._guard

    def fitting(self, key: Any, guard: Guard, compile: Callable[[], T]) -> T:
        """
        :param key: What a program takes for constant besides what is guarded
        :param guard: What it takes for constant of modules
        :param compile: Compiles what is missing
        :return: What was compiled for the same constants
        :raises Exception: When it cannot be compiled
        """
        key = (key, weights_of(*guard.modules), distribution_settings(*guard.modules), torch_settings())
        for known_key, known_guard, program in self.compiled:
            if known_key == key and known_guard.same_constants(guard):
                return program
        if self.failed:
            raise Refusal("it failed before")
        if len(self.compiled) == MAX_PROGRAMS:
            raise NotImplementedError(f"what it takes for constant has changed {MAX_PROGRAMS} times")
        with guard.restoring():
            program = compile()
        self.compiled.append((key, guard, program))
        return program

    def attempt(self, prepare: Callable[[], T]) -> T | None:
        """
        :param prepare: Prepares what was compiled for being called
        :return: What it returns, None after a warning when it raises
        """
        try:
            return prepare()
        except Refusal as refusal:
            if not self.failed:
                self._warn(refusal)
        except Exception as error:  # There is nothing that compilers do not raise
            self.failed = True
            self._warn(error)
        return None

    def _warn(self, error: Exception) -> None:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(
                f"The {self.what} cannot be compiled and runs plain, with the same result but slower "
                f"(`compile=False` to not be told): {reason}"
            )


def layout_of(tensors: Sequence[th.Tensor]) -> tuple[Any, ...]:
    """
    :param tensors: Tensors
    :return: What a program takes for constant of them
    """
    return tuple([(x.shape, x.stride(), x.dtype, x.device) for x in tensors])


def weights_of(*modules: nn.Module) -> Any:
    """
    :param modules: Modules
    :return: Where they have which weights and buffers, the same tensor in two places included, and what is trained
    """
    tensors = [
        (name, x)
        for module in modules
        for child in module.modules()
        for store in (child._parameters, child._buffers)
        for name, x in store.items()
    ]
    numbers = {id(x): number for number, (_, x) in enumerate(tensors)}
    return tuple((name, x is not None and (numbers[id(x)], x.requires_grad)) for name, x in tensors)


def distribution_settings(*modules: nn.Module) -> Any:
    """
    :param modules: Modules
    :return: What SB3's distributions among their attributes are set to; they are no modules
    """
    distributions = [x for module in modules for x in vars(module).values() if isinstance(x, Distribution)]
    return [{k: v for k, v in vars(x).items() if isinstance(v, (bool, int, float))} for x in distributions]


def torch_settings() -> Any:
    """
    :return: What compiled code takes for constant of torch
    """
    return (
        th.get_num_threads(),
        th.get_default_dtype(),
        th.are_deterministic_algorithms_enabled(),
        *((th.is_autocast_enabled(device), th.get_autocast_dtype(device)) for device in ("cpu", "cuda")),
    )
