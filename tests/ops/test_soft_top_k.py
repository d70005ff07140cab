"""The soft top-k against sorting in float64: any temperature, any k, ties; the sparse door against the dense."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.errors import InvalidInput
from apportion.ops.soft_top_k import (
    soft_pairs,
    soft_top_k,
    soft_top_k_gradients_reference,
    soft_top_k_reference,
    weights_at,
)

ALPHAS = [1e-6, 1e-4, 0.01, 0.1, 0.3, 1.0, 10.0]
F = 257
FEW_AND_MANY = [[1.0, 32.5, 5.0, 20.0, 240.0], [0.0, 300.0, 500.0, 251.0, 2.0]]  # k of five rows of 500


def batch(scale: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, F] rows of every kind, and a k for each of them."""
    kinds = {
        "plain": lambda row: row,
        "half of it zeros": lambda row: row.relu(),
        "all zero": lambda row: row * 0,
        "constant": lambda row: row * 0 + scale,
        "ties": lambda row: (row / scale * 2).round() * scale / 2,
        "two values": lambda row: (row > 0) * scale,
        "one peak": lambda row: torch.where(torch.arange(len(row)) == 5, row * 0 + scale, row * 0),
        "nearly ties": lambda row: scale + row * 1e-6,
    }
    ks = [0.0, 1e-6, 0.5, 1.0, 7.0, 7.3, 32.0, F / 2, F / 2 + 1, F - 1.0, F - 1e-3, float(F)]
    generator = torch.Generator().manual_seed(seed)
    rows = [make(torch.randn(F, generator=generator) * scale) for make in kinds.values() for _ in ks]
    return torch.stack(rows).to(dtype), torch.tensor(ks * len(kinds), dtype=dtype)


def gradients(a, k, alpha, grad):
    temperature = torch.as_tensor(alpha, dtype=a.dtype, device=a.device)
    leaves = [t.detach().clone().requires_grad_() for t in (a, k, temperature)]
    return torch.autograd.grad(soft_top_k(*leaves), leaves, grad)


def weight_by_bisection(row: list[float], k: float, alpha: float, entry: int) -> float:
    """One weight, with the threshold found by halving an interval around the entry, summed without rounding."""
    u = [(value - row[entry]) / alpha for value in row]

    def phi(t: float) -> float:
        return math.exp(t) / 2 if t < 0 else 1 - math.exp(-t) / 2

    low, high = min(u) - 800.0, max(u) + 800.0
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(phi(t - middle) for t in u) >= k:
            low = middle
        else:
            high = middle
    return phi(-low)


def check_gradients(a, k, alpha, *, share_of_k):
    """All three gradients are those of the formula, that of k up to ``share_of_k``."""
    grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=a.dtype).to(a.device)
    d_a, d_k, d_alpha = gradients(a, k, alpha, grad)
    want_a, want_k, want_alpha = soft_top_k_gradients_reference(a, k, alpha, grad)
    tight = 1e-5 if a.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(d_a.double() * alpha, want_a * alpha, rtol=tight, atol=tight)
    # d_k is shared between the entries nearest to b: at most 1e10 alpha away, where float64 errs by 1e-6.
    torch.testing.assert_close(d_k.double(), want_k, rtol=0, atol=share_of_k)
    terms = (d_a.double() * (a.double().abs().amax(1, keepdim=True) / alpha + 30)).abs().sum()
    assert torch.isfinite(d_alpha)
    assert abs(float(d_alpha) - float(want_alpha)) <= tight * float(terms)
    for gradient in (d_a, d_k):
        assert torch.isfinite(gradient).all()
        assert (gradient[k == a.shape[1]] == 0).all()


def check_weights(a, k, alpha):
    """The weights are those that sorting gives and sum to k."""
    before = a.clone()
    p = soft_top_k(a, k, alpha)
    assert p.dtype == a.dtype
    want = soft_top_k_reference(a, k, alpha)
    torch.testing.assert_close(p.double(), want, rtol=0, atol=1e-6 if a.dtype == torch.float32 else 1e-9)
    torch.testing.assert_close(p.double().sum(1), k.double(), rtol=1e-4, atol=0)
    assert p.min() >= 0
    assert p.max() <= 1
    assert (p[k == a.shape[1]] == 1).all()
    assert torch.equal(a, before)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-3.0, 0.0, 0.1, 0.11, 1.0, 2.5, 1e4]), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
    st.sampled_from(ALPHAS),
    st.integers(0, 100),
)
def test_the_reference_solves_the_equation(row, share, alpha, entry):
    entry %= len(row)
    k = share * len(row)
    p = soft_top_k_reference(torch.tensor([row], dtype=torch.float64), torch.tensor([k]), alpha)
    want = weight_by_bisection(row, float(torch.tensor(k)), alpha, entry)
    assert float(p[0, entry]) == pytest.approx(want, abs=1e-6 if max(map(abs, row)) > 10 else 1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest_k", [F / 2, F])
def test_equals_sorting_at_any_temperature(alpha, scale, dtype, largest_k):
    a, k = batch(scale, dtype)
    check_weights(a[k <= largest_k], k[k <= largest_k], alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest_k", [F / 2, F])  # rows with more than half of their entries take another route
def test_gradients_equal_the_formula(alpha, scale, dtype, largest_k):
    a, k = batch(scale, dtype)
    a, k = a[k <= largest_k], k[k <= largest_k]
    check_gradients(a, k, alpha, share_of_k=1e-5 if scale > 1 or dtype == torch.float32 else 1e-9)


def test_far_more_entries_than_are_looked_at_one_by_one():
    a = torch.randn(6, 16_384, generator=torch.Generator().manual_seed(3)).relu()
    k = torch.tensor([32.0, 1.0, 640.0, 0.5, 5000.0, 32.5])
    a[1] = 0
    a[3, 5:] = 0  # fewer positive entries than are wanted
    grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(4))
    for alpha in ALPHAS:
        torch.testing.assert_close(
            soft_top_k(a, k, alpha).double(), soft_top_k_reference(a, k, alpha), rtol=0, atol=1e-6
        )
        d_a, d_k, d_alpha = gradients(a, k, alpha, grad)
        want_a, want_k, want_alpha = soft_top_k_gradients_reference(a, k, alpha, grad)
        torch.testing.assert_close(d_a.double() * alpha, want_a * alpha, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(d_k.double(), want_k, rtol=1e-4, atol=1e-5)
        assert float(d_alpha) * alpha == pytest.approx(float(want_alpha) * alpha, rel=1e-3, abs=1e-2)


def test_one_row_of_ties_among_many_others():
    """The route is chosen by looking at some of the rows; the others must be right all the same."""
    a = torch.randn(64, 500, generator=torch.Generator().manual_seed(11))
    a[7], a[9, :400] = 1.5, 0.0
    k = torch.linspace(1, 40, 64)
    for relu in (False, True):
        part = a.relu() if relu else a
        p = soft_top_k(part, k, 1e-4)
        torch.testing.assert_close(p.double(), soft_top_k_reference(part, k, 1e-4), rtol=0, atol=1e-6)


def test_gradients_that_are_not_contiguous():
    a = torch.randn(40, 300, generator=torch.Generator().manual_seed(12))
    for alpha in (1e-3, 1.0):
        left, right = (a.clone().requires_grad_() for _ in range(2))
        soft_top_k(left.T, 5.0, alpha).select(1, 3).sum().backward()
        soft_top_k(right.T.contiguous(), 5.0, alpha)[:, 3].clone().sum().backward()
        torch.testing.assert_close(left.grad, right.grad)
        spread = torch.ones(()).expand(40, 300)
        (d_a,) = torch.autograd.grad(soft_top_k(left, 5.0, alpha), [left], spread)
        assert d_a.abs().max() <= 1e-6 / alpha  # the sum of weights does not move


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.floats(0, 1), st.sampled_from(ALPHAS), st.integers(0, 1000), st.booleans())
def test_laws_of_a_row(width, share, alpha, seed, coarse):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(1, width, generator=generator, dtype=torch.float64)
    a = (a * 2).round() / 2 if coarse else a
    k = share * width
    p = soft_top_k(a, k, alpha)
    order = a.argsort(dim=1)
    assert (p.gather(1, order).diff(dim=1) >= -1e-12).all(), "not monotone"
    shuffle = torch.randperm(width, generator=generator)
    torch.testing.assert_close(soft_top_k(a[:, shuffle], k, alpha), p[:, shuffle], rtol=0, atol=1e-12)
    torch.testing.assert_close(soft_top_k(a + 0.75, k, alpha), p, rtol=0, atol=1e-15 / alpha + 1e-12)
    torch.testing.assert_close(soft_top_k(-a, width - k, alpha), 1 - p, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
def test_gradcheck(alpha):
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    k = torch.tensor([0.3, 1.0, 2.5, 4.5, 6.0, 8.7], dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (a, k, torch.tensor(alpha, dtype=torch.float64))]
    assert torch.autograd.gradcheck(soft_top_k, leaves)


def test_a_cold_one_is_the_hard_top_k():
    a = torch.randn(5, 300, generator=torch.Generator().manual_seed(4))
    k = torch.tensor([0.0, 1.0, 17.0, 32.0, 300.0])
    p = soft_top_k(a, k, 1e-6)
    for row in range(5):
        chosen = set(a[row].topk(int(k[row])).indices.tolist())
        assert set(p[row].nonzero()[:, 0].tolist()) == chosen
        assert (p[row][p[row] > 0] == 1).all()


def test_leading_shapes_and_independent_rows():
    a = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(5))
    k = torch.tensor([[1.0, 2.0, 3.0], [40.0, 5.5, 0.0]])
    p = soft_top_k(a, k, 0.1)
    assert p.shape == a.shape
    for place in ((0, 1), (1, 0), (1, 2)):
        torch.testing.assert_close(soft_top_k(a[place], k[place], 0.1), p[place], rtol=0, atol=1e-7)
        torch.testing.assert_close(soft_top_k(a[place], float(k[place]), 0.1), p[place], rtol=0, atol=1e-7)
    transposed = a.transpose(0, 1)
    torch.testing.assert_close(soft_top_k(transposed, k.T, 0.1), p.transpose(0, 1))
    assert soft_top_k(a[:0], 3, 0.1).shape == (0, 3, 50)
    one = torch.tensor(2.0, requires_grad=True)
    soft_top_k(a, one, 0.1).square().sum().backward()  # one k for all rows gets the sum of their gradients
    assert one.grad is not None
    assert torch.isfinite(one.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_in_float32(dtype):
    a = torch.randn(4, 100, generator=torch.Generator().manual_seed(6)).to(dtype).requires_grad_()
    p = soft_top_k(a, 7.5, 0.1)
    torch.testing.assert_close(p, soft_top_k(a.detach().float(), 7.5, 0.1).to(dtype))
    p.square().sum().backward()
    assert a.grad.dtype == dtype
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize(
    ("k", "alpha", "message"),
    [
        (3, 0.0, "alpha = 0.0"),
        (3, -1.0, "alpha = -1.0"),
        (3, float("nan"), "alpha = nan"),
        (3, float("inf"), "alpha = inf"),
        (3, torch.ones(2), "one temperature"),
        (-0.5, 1.0, "k = -0.5"),
        (float("nan"), 1.0, "k = nan"),
        (torch.tensor([1.0, 9.0]), 1.0, "k = 9.0; .* 8"),
        (torch.ones(3), 1.0, "one k per row"),
    ],
)
def test_bad_input_is_one_sentence(k, alpha, message):
    with pytest.raises(InvalidInput, match=message):
        soft_top_k(torch.zeros(2, 8), k, alpha)


def sparse_case(alpha: float, floor: float, dtype: torch.dtype, ks: list[float], device: str = "cpu"):
    pre = torch.randn(len(ks), 500, generator=torch.Generator().manual_seed(7)).to(device, dtype)
    pre[2] = -pre[2].abs()  # a token that no feature wants
    pre[3] = (pre[3] * 4).round() / 4
    k = torch.tensor(ks, dtype=dtype, device=device, requires_grad=True)
    temperature = torch.tensor(alpha, dtype=dtype, device=device, requires_grad=True)
    before = pre.clone()
    soft = soft_pairs(pre, k, temperature, floor)
    assert torch.equal(pre, before)
    values = pre[soft.pairs.rows, soft.pairs.features].requires_grad_()
    return pre, k, temperature, soft, values


def check_pairs(alpha: float, floor: float, ks: list[float], device: str = "cpu") -> None:
    """The pairs, their weights and all gradients are those of the dense operator."""
    pre, k, temperature, soft, values = sparse_case(alpha, floor, torch.float64, ks, device)
    dense = soft_top_k_reference(pre.relu(), k.detach(), alpha)
    kept = soft.pairs.rows, soft.pairs.features
    flat = kept[0] * 500 + kept[1]
    assert (flat.diff() > 0).all(), "not in canonical order"
    wanted = set(((dense >= floor * (1 + 1e-6)) & (pre > 0)).view(-1).nonzero()[:, 0].tolist())
    allowed = set(((dense >= floor * (1 - 1e-6)) & (pre > 0)).view(-1).nonzero()[:, 0].tolist())
    assert wanted <= set(flat.tolist()) <= allowed

    p = weights_at(values, k, temperature, soft)
    torch.testing.assert_close(p, dense[kept], rtol=0, atol=1e-9)
    grad = torch.randn(len(p), generator=torch.Generator().manual_seed(8), dtype=p.dtype).to(device)
    got = torch.autograd.grad(p, [values, k, temperature], grad)
    everywhere = torch.zeros_like(pre).index_put_(kept, grad)
    want_a, want_k, want_alpha = soft_top_k_gradients_reference(pre.relu(), k.detach(), alpha, everywhere)
    torch.testing.assert_close(got[0] * alpha, want_a[kept] * alpha, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(got[1], want_k, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got[2] * alpha, want_alpha * alpha, rtol=1e-6, atol=1e-6)
    # What entries left out do not get is bounded as promised.
    left_out = want_a.index_put(kept, torch.zeros_like(grad)) * (pre > 0)
    assert (left_out.abs() <= floor * want_k.abs()[:, None] / alpha * (1 + 1e-9)).all()


@pytest.mark.parametrize("ks", FEW_AND_MANY)
@pytest.mark.parametrize("floor", [1e-3, 0.1, 0.5])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_pairs_equal_the_dense_operator(alpha, floor, ks):
    check_pairs(alpha, floor, ks)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_pairs_in_float32(alpha):
    pre, k, temperature, soft, values = sparse_case(alpha, 1e-3, torch.float32, [1.0, 32.5, 5.0, 20.0, 300.0])
    p = weights_at(values, k, temperature, soft)
    dense = soft_top_k_reference(pre.relu(), k.detach(), float(temperature.detach()))
    torch.testing.assert_close(p.double(), dense[soft.pairs.rows, soft.pairs.features], rtol=0, atol=1e-6)
    for gradient in torch.autograd.grad(p.square().sum(), [values, k, temperature]):
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all()


def test_pairs_gradcheck():
    pre = torch.randn(4, 30, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    k = torch.tensor([1.5, 4.0, 7.0, 20.0], dtype=torch.float64)
    everything = (pre > 0).nonzero(as_tuple=True)
    k.requires_grad_()
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def weights(values, k, alpha):
        """The threshold depends on all three, as in a training step."""
        soft = soft_pairs(pre.clone().index_put_(everything, values.detach()), k, alpha, 1e-9)
        return weights_at(values, k, alpha, soft)

    assert torch.autograd.gradcheck(weights, [pre[everything].requires_grad_(), k, alpha])


def test_pairs_need_the_same_alpha_and_a_sensible_floor():
    pre, k = torch.randn(2, 8), torch.ones(2)
    with pytest.raises(InvalidInput, match="floor = 0"):
        soft_pairs(pre, k, 0.1, 0.0)
    with pytest.raises(InvalidInput, match=r"k = 9\.0"):
        soft_pairs(pre, k * 9, 0.1, 1e-3)
    soft = soft_pairs(pre, k, 0.1, 1e-3)
    values = pre[soft.pairs.rows, soft.pairs.features]
    with pytest.raises(InvalidInput, match="same alpha"):
        weights_at(values, k, torch.tensor(0.1, requires_grad=True), soft)
