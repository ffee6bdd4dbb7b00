"""From functions of a policy's tensors to compiled code."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_r2vpo.fast.onednn import onednn_is_faster, use_onednn

#: From tensors to tensors
Program = Callable[..., tuple[th.Tensor, ...]]

#: The random numbers of the plain code
OPTIONS = ["fallback_random"]
#: Thirty small kernels called from Python spend a fifth of the time on the calls, and what the matrix products leave
#: is mostly tanh, which costs half as much when made of exp (absolute error 1e-7).
CPU_OPTIONS = ["cpp_wrapper", "cpp.use_decompose_tanh"]


class Programs(dict[Any, Program]):
    """
    What was compiled, by everything it takes for constant. Compiled code does not travel: copies and pickles are empty.

    :param what: What they compute, in words
    """

    #: Whether something could not be compiled; it is not tried again
    failed = False

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def give_up(self, error: Exception) -> None:
        """
        :param error: Why it cannot be compiled
        """
        self.failed = True
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        warnings.warn(
            f"The {self.what} cannot be compiled and runs plain, with the same result but slower "
            f"(`compile=False` to not be told): {reason}"
        )

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.what,)


def compile_function(function: Callable[..., Any], inputs: Sequence[th.Tensor]) -> Program:
    """
    Compile a function of tensors. It is traced by ``make_fx`` and not by ``torch.compile``, whose guards on every
    attribute of the policy cost as much at each call as the arithmetic of a small network, and which takes fewer policies.

    :param function: A function of tensors; everything else that it reads is taken for constant
    :param inputs: Tensors of the shapes, types and devices that it is for
    :return: The compiled function
    """
    with without_validation():
        graph = make_fx(function, tracing_mode="fake")(*inputs)
    on_cpu = inputs[0].device.type == "cpu"
    if on_cpu and onednn_is_faster():
        use_onednn(graph)
    names = OPTIONS + CPU_OPTIONS if on_cpu else OPTIONS
    # Not every version has all of them
    options: dict[str, Any] = {name: True for name in names if name in th._inductor.list_options()}
    return th._inductor.compile(graph, list(inputs), options=options)


def layout_of(tensors: Sequence[th.Tensor]) -> tuple[Any, ...]:
    """
    :param tensors: Tensors
    :return: What a program takes for constant of them
    """
    return tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors)


def constants_of(policy: ActorCriticPolicy) -> tuple[Any, ...]:
    """
    :param policy: The policy
    :return: What a program takes for constant of it, and that may change from one rollout to another
    """
    return (
        tuple((id(module), module.training) for module in policy.modules()),
        tuple((id(p), p.requires_grad) for p in policy.parameters()),
        th.get_num_threads(),
    )


def check_traceable(policy: ActorCriticPolicy) -> None:
    """
    :param policy: The policy
    :raises NotImplementedError: When it does what would be lost in tracing
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for module in policy.modules() for name in hooks):
        raise NotImplementedError("a module of the policy has hooks")
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters()):
        raise NotImplementedError("a parameter of the policy has hooks")
    if len({(p.dtype, p.device) for p in policy.parameters()}) > 1:
        raise NotImplementedError("the policy's parameters are of several types or on several devices")


@contextmanager
def replaced(replacements: dict[th.Tensor, th.Tensor], *modules: nn.Module) -> Iterator[None]:
    """
    Other tensors in the place of parameters and buffers. ``th.func.functional_call`` would not put them back where
    modules are known by several names, like SB3's features extractors.

    :param replacements: The tensor for each parameter and buffer
    :param modules: The modules to change
    """
    stores: list[Any] = [store for module in modules for m in module.modules() for store in (m._parameters, m._buffers)]
    before = [dict(store) for store in stores]
    try:
        for store in stores:
            store.update({name: replacements[x] for name, x in store.items() if x is not None})
        yield
    finally:
        for store, tensors in zip(stores, before, strict=True):
            store.update(tensors)


@contextmanager
def without_validation() -> Iterator[None]:
    """The checks of distributions depend on values and cannot be traced. The update has its own."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
