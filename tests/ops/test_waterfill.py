"""The best split against enumeration of all splits, and each part against its plain form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.ops.waterfill import Steps, best_k, buy, hull_steps, prefix_errors, thinned


def curves(n: int, k_max: int, seed: int) -> Tensor:
    """[n, k_max + 1] float64: errors that mostly fall, in steps that are neither sorted nor all falls."""
    generator = torch.Generator().manual_seed(seed)
    falls = torch.randn(n, k_max, generator=generator, dtype=torch.float64) + 0.7
    return 10 - torch.cat([torch.zeros(n, 1, dtype=torch.float64), falls.cumsum(1)], 1)


def best_of_all_splits(errors: Tensor) -> dict[int, float]:
    """The smallest summed error for at most every budget, by trying every split."""
    exact: dict[int, float] = {}
    for split in itertools.product(*(enumerate(row) for row in errors.tolist())):
        k, error = map(sum, zip(*split, strict=True))
        exact[k] = min(error, exact.get(k, math.inf))
    return dict(zip(sorted(exact), itertools.accumulate((exact[m] for m in sorted(exact)), min), strict=True))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 4), k_max=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_no_split_is_better_and_at_attained_budgets_the_best_is_met(n: int, k_max: int, seed: int) -> None:
    errors = curves(n, k_max, seed)
    steps, best, start = hull_steps(errors), best_of_all_splits(errors), float(errors[:, 0].sum())
    for budget, smallest in best.items():
        assert start - buy(steps, budget).saved <= smallest + 1e-9
    prices = sorted({*steps.gain.tolist(), 0.0}, reverse=True)
    between = [2 * prices[0] + 1, *((a + b) / 2 for a, b in itertools.pairwise(prices))]
    for price in between:
        k = best_k(errors, price)
        left = float(errors.gather(1, k[:, None]).sum())
        assert left == pytest.approx(best[int(k.sum())])
        assert start - buy(steps, int(k.sum())).saved == pytest.approx(left)
    most = int(best_k(errors, prices[-2] / 2 if len(prices) > 1 else 1.0).sum())
    assert start - buy(steps, n * k_max).saved == pytest.approx(min(best.values()))
    assert most == steps.width.sum()


def test_between_two_attained_budgets_the_last_step_is_bought_in_part() -> None:
    # The second feature is worth nothing alone: no price stops at k = 1.
    steps = hull_steps(torch.tensor([[10.0, 10.0, 4.0]], dtype=torch.float64))
    assert (steps.gain.tolist(), steps.width.tolist()) == ([3.0], [2.0])
    assert buy(steps, 1) == (3.0, 3.0)
    assert best_k(torch.tensor([[10.0, 10.0, 4.0]]), 2.9).tolist() == [2]
    assert best_k(torch.tensor([[10.0, 10.0, 4.0]]), 3.1).tolist() == [0]


def test_equal_costs_take_the_smallest_k() -> None:
    assert best_k(torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]), 1.0).tolist() == [0, 0]


def test_nothing_is_bought_that_does_not_help() -> None:
    steps = hull_steps(torch.tensor([[1.0, 2.0, 3.0], [5.0, 4.0, 4.0]], dtype=torch.float64))
    assert buy(steps, 4) == (1.0, 0.0)
    assert buy(Steps(steps.gain[:0], steps.width[:0]), 4) == (0.0, 0.0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_prefix_errors_are_those_of_running_sums(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(50, 12, generator=generator), dim=1)
    x, values = torch.randn(9, 12, generator=generator), torch.rand(9, 20, generator=generator)
    values[3, 5:] = 0
    features = torch.stack([torch.randperm(50, generator=generator)[:20] for _ in range(9)])
    errors = prefix_errors(x.to(dtype), W_dec.to(dtype), features, values.to(dtype))
    sums = (values.double()[..., None] * W_dec.double()[features]).cumsum(1)
    want = (x.double()[:, None] - torch.cat([torch.zeros(9, 1, 12).double(), sums], 1)).square().sum(-1)
    torch.testing.assert_close(errors.double(), want, rtol=tolerance, atol=tolerance)
    assert (errors[3, 5:] == errors[3, 5]).all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_thinning_loses_no_more_than_it_says(n: int, seed: int) -> None:
    steps, other = hull_steps(curves(n, 20, seed)), hull_steps(curves(5, 20, seed + 1))
    fewer, loss = thinned(steps)
    assert len(fewer.gain) <= len(steps.gain) * 5 // 8 + 2
    assert float(fewer.width.sum()) == float(steps.width.sum())
    both = [Steps(*map(torch.cat, zip(some, other, strict=True))) for some in (steps, fewer)]
    for budget in range(0, 20 * n + 100, 3):
        full, thin = (buy(curve, budget).saved for curve in both)
        assert full - loss - 1e-9 <= thin <= full + 1e-9
