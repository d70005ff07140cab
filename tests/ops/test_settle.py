"""Selections that rounding cannot change: equal to those of exact arithmetic, however the product was rounded."""

from __future__ import annotations

import pytest
import torch

from apportion.ops.above import Pairs, entries_above
from apportion.ops.select import select_rows
from apportion.ops.settle import error_band, exact_values, settled_above, settled_rows


def problem(seed: int, n: int = 40, d_in: int = 64, d_sae: int = 300):
    g = torch.Generator().manual_seed(seed)
    centred, weight = torch.randn(n, d_in, generator=g), torch.randn(d_sae, d_in, generator=g) / 8
    # Near-copies of features make near-ties that float32 cannot tell apart reliably.
    weight[1::2] = weight[0::2] * (1 + 1e-7 * torch.randn(d_sae // 2, 1, generator=g))
    bias = (0.1 * torch.randn(d_sae // 2, generator=g)).repeat_interleave(2)
    true = centred.double() @ weight.double().T + bias.double()
    return centred, weight, bias, true


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_exact_arithmetic(seed):
    centred, weight, bias, true = problem(seed)
    band = error_band(centred, weight, bias)
    k = torch.randint(0, 40, (len(centred),), generator=torch.Generator().manual_seed(seed))
    noise = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed + 99)) * 2 - 1
    rounded = (true + noise.double() * band.double() * 0.5).float()  # as badly rounded as could be
    exact = lambda pairs: exact_values(centred, weight, bias, pairs)  # noqa: E731
    want, got = select_rows(true, k), settled_rows(rounded, k, band, exact)
    assert torch.equal(torch.stack(got), torch.stack(want))
    assert not torch.equal(torch.stack(select_rows(rounded, k)), torch.stack(want)), "the case is too easy"


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_above_is_that_of_exact_arithmetic(seed, per_feature):
    centred, weight, bias, true = problem(seed)
    band = error_band(centred, weight, bias)
    theta = true[3, 7].float().clamp(min=0.5) if not per_feature else true[3].float().clamp(min=0)
    noise = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed + 99)) * 2 - 1
    rounded = (true + noise.double() * band.double() * 0.5).float()
    got = settled_above(rounded, theta, band, lambda pairs: exact_values(centred, weight, bias, pairs))
    assert torch.equal(torch.stack(got), torch.stack(entries_above(true, theta.double())))


def test_the_band_bounds_the_rounding_of_the_product():
    centred, weight, bias, true = problem(0, n=500, d_in=768)
    error = (torch.addmm(bias, centred, weight.T).double() - true).abs()
    assert (error <= error_band(centred, weight, bias).double()).all()


def test_exact_values_do_not_depend_on_the_company():
    centred, weight, bias, _ = problem(1)
    pairs = Pairs(torch.arange(40).repeat_interleave(3), torch.arange(120))
    together = exact_values(centred, weight, bias, pairs)
    alone = [exact_values(centred, weight, bias, Pairs(r[None], f[None])) for r, f in zip(*pairs, strict=True)]
    assert torch.equal(together, torch.cat(alone))
