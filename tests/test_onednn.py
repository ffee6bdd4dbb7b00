"""Matrix products by oneDNN are matrix products."""

import copy

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_r2vpo import R2VPO
from sb3_r2vpo.fast import onednn

pytestmark = pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("m, k, n", [(64, 5, 3), (3, 64, 5), (5, 64, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_product(m, k, n, bias, transposed):
    a = th.randn(k, m).t() if transposed else th.randn(m, k)
    b, c = th.randn(k, n), th.randn(n) if bias else None
    result = th.ops.sb3_r2vpo.product(a, b.t(), c)
    th.testing.assert_close(result, a @ b + (0.0 if c is None else c), rtol=1e-4, atol=1e-5)
    th.library.opcheck(th.ops.sb3_r2vpo.product.default, (a, b.t(), c))


def test_large_products_are_replaced(monkeypatch):
    monkeypatch.setattr(onednn, "PAYS_FROM", 2 * 32 * 16 * 8)
    network = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))

    def gradients(x):
        return th.autograd.grad(network(x).square().mean(), list(network.parameters()))

    x = th.randn(32, 16)
    traced = make_fx(gradients)(x)
    onednn.use_onednn(traced)
    targets = [node.target for node in traced.graph.nodes]
    # The first layer's, and its weight's gradient
    assert targets.count(th.ops.sb3_r2vpo.product.default) == 2
    assert targets.count(th.ops.aten.addmm.default) == 1 and th.ops.aten.mm.default in targets
    th.testing.assert_close(list(traced(x)), list(gradients(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [th.float64, th.bfloat16])
def test_other_types_are_left_alone(monkeypatch, dtype):
    monkeypatch.setattr(onednn, "PAYS_FROM", 0)
    a, b = th.zeros(2, 4, 4, dtype=dtype)
    traced = make_fx(th.mm)(a, b)
    onednn.use_onednn(traced)
    assert th.ops.aten.mm.default in [node.target for node in traced.graph.nodes]


@pytest.mark.slow
def test_training_with_large_minibatches(monkeypatch):
    """The compiled gradient step with oneDNN's products beside the plain one, on the same rollout."""
    n_products = []
    monkeypatch.setattr("sb3_r2vpo.fast.tracing.onednn_is_faster", lambda: True)
    monkeypatch.setattr(
        onednn, "is_large_product", lambda node, original=onednn.is_large_product: original(node) and not n_products.append(1)
    )
    arguments = dict(n_steps=4096, batch_size=2048, n_epochs=5, learning_rate=1e-3, seed=0, device="cpu")
    plain, other = (R2VPO("MlpPolicy", "Pendulum-v1", compile=compile, **arguments) for compile in (False, True))
    for model in (plain, other):
        model.learn(4096)
    other.rollout_buffer = plain.rollout_buffer
    other.set_parameters(copy.deepcopy(plain.get_parameters()))
    for model in (plain, other):
        np.random.seed(0)
        model.train()
    # Two layers of two networks, forwards and backwards
    assert len(n_products) >= 6 and not other._programs.failed
    th.testing.assert_close(plain.policy.state_dict(), other.policy.state_dict(), rtol=0, atol=1e-5)
