"""The soft top-k at a whole k with a wide gap below it, against a solution in hundreds of digits.

All densities are tiny there, and the gradients are shares of them.
"""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from apportion.ops import kernels
from apportion.ops.soft_top_k import (
    soft_pairs,
    soft_top_k,
    soft_top_k_gradients_reference,
    soft_top_k_reference,
    weights_at,
)

K, GAPS, F = 4, (50.0, 90.0, 400.0), 96


def rows(alpha: float, dtype: torch.dtype, crowd: float) -> Tensor:
    """[3, F] whose entries number 4 and 5 are a gap of some ``alpha`` apart, others near to either.

    With ``crowd`` so many alphas from one of the others to the next.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for gap in GAPS:
        t = torch.cat([gap + torch.tensor([0.0, 0.4, 1.7, 30.0]), -crowd * torch.arange(float(F - 4)) - 0.2])
        made.append((1.0 + alpha * t.double())[torch.randperm(F, generator=generator)])
    return torch.stack(made).to(dtype)


def solved(row: Tensor, alpha: float, grad: Tensor) -> tuple[list[float], list[float], float, float]:
    """Weights, and what ``grad`` on them gives the row, k and alpha, by formula in exact enough arithmetic."""
    mpmath.mp.dps = 300
    a, g = ([mpmath.mpf(v) for v in t.double().tolist()] for t in (row, grad))
    width, exp = mpmath.mpf(alpha), mpmath.exp
    falling = sorted(a, reverse=True)
    upper, lower = falling[K - 1], falling[K]
    p = sum(exp((upper - v) / width) for v in falling[:K])
    q = sum(exp((v - lower) / width) for v in falling[K:])
    b = (upper + lower) / 2 + width * mpmath.log(q / p) / 2
    t = [(v - b) / width for v in a]
    weights = [exp(v) / 2 if v < 0 else 1 - exp(-v) / 2 for v in t]
    assert abs(sum(weights) - K) < mpmath.mpf(10) ** -280
    density = [exp(-abs(v)) / 2 for v in t]
    share = [d / sum(density) for d in density]
    by_k, mean_t = (sum(s * v for s, v in zip(share, column, strict=True)) for column in (g, t))
    by_a = [float(d / width * (v - by_k)) for d, v in zip(density, g, strict=True)]
    by_alpha = -sum(d / width * (v - mean_t) * w for d, v, w in zip(density, t, g, strict=True))
    return [float(w) for w in weights], by_a, float(by_k), float(by_alpha)


@pytest.fixture(params=["torch", "kernels"])
def way(request, monkeypatch) -> str:
    """Who computes: torch, or the kernels interpreted."""
    if request.param == "kernels":
        pytest.importorskip("triton", reason="Triton is not installed")
        monkeypatch.setattr(kernels, "on_card", lambda t: True)
    return request.param


def close(got: Tensor, want: list, tight: float) -> None:
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=0, atol=tight)


@pytest.mark.parametrize("crowd", [0.3, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_every_gradient(dtype, crowd, way):
    alpha = 2.0**-14 if dtype == torch.float32 else 1e-4
    tight = 2e-5 if dtype == torch.float32 else 1e-9
    a = rows(alpha, dtype, crowd)
    grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    truth = [solved(row, alpha, given) for row, given in zip(a, grad, strict=True)]
    weights, by_a, by_k, by_alpha = zip(*truth, strict=True)
    leaves = [a.clone().requires_grad_(), torch.full((3,), float(K), dtype=dtype).requires_grad_()]
    width = torch.tensor(alpha, dtype=dtype, requires_grad=True)
    p = soft_top_k(*leaves, width)
    d_a, d_k, d_alpha = torch.autograd.grad(p, [*leaves, width], grad)
    torch.testing.assert_close(p.double(), torch.tensor(weights, dtype=torch.float64), rtol=0, atol=tight)
    close(d_k, by_k, tight)
    want = torch.tensor(by_a, dtype=torch.float64)
    scale = want.abs().amax(1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(d_a.double() / scale, want / scale, rtol=0, atol=10 * tight)
    assert float(d_alpha) == pytest.approx(sum(by_alpha), rel=1e3 * tight)
    if way == "torch":
        close(soft_top_k_reference(a, leaves[1].detach(), alpha), weights, 1e-9)
        ref_a, ref_k, _ = soft_top_k_gradients_reference(a, leaves[1].detach(), alpha, grad)
        close(ref_k, by_k, 1e-9)
        torch.testing.assert_close(ref_a / scale, want / scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_give_k_what_the_weights_that_they_keep_ask_for(dtype, way):
    alpha = 2.0**-14
    a = rows(alpha, dtype, 40.0)
    k = torch.full((3,), float(K), dtype=dtype, requires_grad=True)
    soft = soft_pairs(a, k, alpha, 0.01)
    kept = torch.zeros(a.shape, dtype=dtype).index_put(tuple(soft.pairs), torch.ones((), dtype=dtype))
    assert kept.sum(1).tolist() == [K] * 3
    grad = kept * torch.randn(a.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    values = soft.pairs.of(a).requires_grad_()
    (d_k,) = torch.autograd.grad(weights_at(values, k, alpha, soft), [k], soft.pairs.of(grad))
    close(d_k, [solved(row, alpha, given)[2] for row, given in zip(a, grad, strict=True)], 2e-5)
