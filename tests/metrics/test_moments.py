"""Moments against naive float64 sums, and the refusals of the contract."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.code import Code
from apportion.errors import InvalidInput, NonFiniteActivations
from apportion.metrics import MetricBatch
from apportion.metrics.base import Moments, unexplained


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), full=st.booleans(), seed=st.integers(0, 99))
def test_moments_are_those_of_all_rows_together(sizes: list[int], full: bool, seed: int) -> None:
    x = torch.randn(sum(sizes) + 1, 5, generator=torch.Generator().manual_seed(seed))
    moments = Moments(full)
    for part in x.split([*sizes, 1]):
        moments.update(part)
    wide = x.double()
    centred = wide - wide.mean(0)
    expected = centred.T @ centred if full else (centred**2).sum()
    assert moments.n == len(x)
    torch.testing.assert_close(moments.mean, wide.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(moments.scatter, expected, rtol=1e-12, atol=1e-13)


def test_one_huge_first_row_costs_no_digits() -> None:
    """What shifting by the first row would get wrong: models' first tokens have such norms."""
    x = torch.randn(501, 3, generator=torch.Generator().manual_seed(0)).double()
    x[0] = 1e9
    moments = Moments()
    moments.update(x[:1])
    moments.update(x[1:])
    mean = x[1:].mean(0)
    rest = ((x[1:] - mean) ** 2).sum()
    step = ((x[0] - mean) ** 2).sum() * 500 / 501
    assert float(moments.scatter) == pytest.approx(float(rest + step), rel=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_equal_rows_have_no_variance_to_explain(value: float) -> None:
    moments = Moments()
    for rows in (3, 7, 1):
        moments.update(torch.full((rows, 5), value, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="11 measured rows are all equal"):
        unexplained(1.0, moments)


def test_the_smallest_float32_difference_is_variance() -> None:
    x = torch.full((1000, 5), 0.1)
    x[3, 2] = torch.nextafter(x[3, 2], torch.tensor(1.0))
    moments = Moments()
    moments.update(x)
    assert unexplained(0.0, moments) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_sums_are_refused(bad: float) -> None:
    moments = Moments()
    moments.update(torch.tensor([[1.0], [2.0]]))
    with pytest.raises(NonFiniteActivations, match="finite"):
        unexplained(bad, moments)


def test_no_tokens_are_refused() -> None:
    with pytest.raises(InvalidInput, match="0 tokens"):
        unexplained(0.0, Moments())


def test_a_batch_of_unlike_parts_is_refused() -> None:
    x, code = torch.zeros(3, 2), Code.from_dense(torch.zeros(3, 4))
    for bad in (
        lambda: MetricBatch(x, torch.zeros(3, 1), code),
        lambda: MetricBatch(x, x, Code.from_dense(torch.zeros(2, 4))),
        lambda: MetricBatch(x, x, code, torch.zeros(4, dtype=torch.int64)),
        lambda: MetricBatch(x[None], x[None], code),
    ):
        with pytest.raises(InvalidInput, match="same tokens"):
            bad()
