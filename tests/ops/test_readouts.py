"""Products that keep no activations: against the plain formula in float64, in output and in every gradient."""

from __future__ import annotations

import pytest
import torch

from apportion.ops import rectified
from apportion.ops.rectified import weigh
from apportion.ops.relu_readout import relu_readout


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "d_sae"), [(1, 1), (7, 96), (300, 50), (0, 4)])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_weigh_is_the_rectified_product(n, d_sae, chunk, monkeypatch):
    monkeypatch.setattr(rectified, "_CHUNK", chunk)
    pre, weight = draw(n, d_sae, seed=0), draw(d_sae, seed=1).requires_grad_()
    upstream = draw(n, seed=2)
    before = pre.clone()
    got = weigh(pre, weight)
    want = pre.relu() @ weight
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad((got * upstream).sum(), weight),
        torch.autograd.grad((want * upstream).sum(), weight),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert torch.equal(pre, before)


def test_weigh_gives_the_encoder_nothing():
    pre, weight = draw(5, 8, seed=0).requires_grad_(), draw(8, seed=1).requires_grad_()
    weigh(pre, weight).sum().backward()
    assert pre.grad is None and weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d_in", "width"), [(9, 5, 3), (40, 24, 96), (33, 8, 2500)])
def test_relu_readout_against_autograd(n, d_in, width, dtype):
    x = draw(n, d_in, seed=0).to(dtype)
    leaves = [
        draw(*shape, seed=s).to(dtype).requires_grad_()
        for s, shape in enumerate([(width, d_in), (width,), (width,)])
    ]
    upstream = draw(n, seed=7).to(dtype)
    got = relu_readout(x, *leaves)
    twins = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = (x.double() @ twins[0].T + twins[1]).relu() @ twins[2]
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(got.double(), want, **tolerance)
    got_grads = torch.autograd.grad((got * upstream).sum(), leaves)
    want_grads = torch.autograd.grad((want * upstream.double()).sum(), twins)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)
