"""From functions of a policy's tensors to compiled code."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_r2vpo.fast.memory import keep_freed_memory, needs_large_blocks
from sb3_r2vpo.fast.onednn import onednn_is_faster, use_onednn

#: From tensors to tensors
Program = Callable[..., tuple[th.Tensor, ...]]

#: The random numbers of the plain code
OPTIONS = ["fallback_random"]
#: Thirty small kernels called from Python spend a fifth of the time on the calls, and what the matrix products leave
#: is mostly tanh, which costs half as much when made of exp (absolute error 1e-7).
CPU_OPTIONS = ["cpp_wrapper", "cpp.use_decompose_tanh"]


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
    if on_cpu and needs_large_blocks(graph):
        keep_freed_memory()
    names = OPTIONS + CPU_OPTIONS if on_cpu else OPTIONS
    # Not every version has all of them
    options: dict[str, Any] = {name: True for name in names if name in th._inductor.list_options()}
    with without_warning_of_fallbacks():
        program = th._inductor.compile(graph, list(inputs), options=options)
    # What fails at its first call fails here, where nothing is lost
    with th.random.fork_rng([x.device for x in inputs[:1] if x.is_cuda]):
        program(*(th.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x) for x in inputs))
    return program


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


@contextmanager
def without_warning_of_fallbacks() -> Iterator[None]:
    """Drawing discrete actions is none of the operations that compiled code calls directly; a user can do nothing about it."""
    logger = logging.getLogger("torch._inductor.ir")

    def is_other(record: logging.LogRecord) -> bool:
        return "missing a c-shim" not in str(record.msg)

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
