"""
Large matrix products by oneDNN where torch's own are slow: torch multiplies with Intel's MKL, which leaves AVX-512 unused
on AMD's processors (measured by benchmarks/speed.py on Zen 5: half the speed).
"""

from functools import cache
from pathlib import Path

import torch as th
from torch.fx import GraphModule, Node

#: Floating point operations of a product from which oneDNN saves more than its call costs
PAYS_FROM = 3_000_000


def product(a: th.Tensor, b_t: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    :param a: Left matrix, of shape (m, k)
    :param b_t: Right matrix, transposed, of shape (n, k)
    :param bias: To be added to every row, of shape (n,)
    :return: The product, of shape (m, n)
    """
    linear = th.ops.mkldnn._linear_pointwise
    if bias is None and len(a) > len(b_t) and not a.is_contiguous():
        # A weight's gradient: oneDNN takes up to four times as long for a tall one as for a wide one
        return linear(b_t, a, None, "none", [], "").t().contiguous()
    return linear(a, b_t, bias, "none", [], "")


# As an operator of torch, compiled code can call it. Where this module is reloaded the former one has to go first.
LIBRARY: th.library.Library | None = None
LIBRARY = th.library.Library("sb3_r2vpo", "DEF")
LIBRARY.define("product(Tensor a, Tensor b_t, Tensor? bias) -> Tensor")
LIBRARY.impl("product", product, "CPU")
th.library.register_fake("sb3_r2vpo::product", lambda a, b_t, bias: a.new_empty(len(a), len(b_t)), lib=LIBRARY)


@cache
def onednn_is_faster() -> bool:
    """
    :return: Whether torch multiplies with MKL, on a processor by AMD with AVX-512. Not timed on the spot: the same seed
        is to give the same weights in every run.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return (
        th.backends.mkl.is_available()
        and th.backends.mkldnn.is_available()
        and th.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.exists()
        and "AuthenticAMD" in cpuinfo.read_text()
    )


def use_onednn(traced: GraphModule) -> None:
    """
    :param traced: Traced code, whose large matrix products are replaced
    """
    graph = traced.graph
    for node in list(graph.nodes):
        if is_large_product(node):
            *bias, a, b = node.args
            with graph.inserting_before(node):
                b_t = graph.call_function(th.ops.aten.t.default, (b,))
                replacement = graph.call_function(th.ops.sb3_r2vpo.product.default, (a, b_t, bias[0] if bias else None))
            node.replace_all_uses_with(replacement)
            graph.erase_node(node)
    traced.recompile()


def is_large_product(node: Node) -> bool:
    """
    :param node: A node of traced code
    :return: Whether it is a matrix product that oneDNN is made for
    """
    if node.target not in (th.ops.aten.mm.default, th.ops.aten.addmm.default) or node.kwargs:
        return False
    a, b = (argument.meta["val"] for argument in node.args[-2:])  # type: ignore[union-attr]
    return a.dtype == th.float32 and 2 * a.shape[0] * a.shape[1] * b.shape[1] >= PAYS_FROM
