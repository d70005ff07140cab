"""Rank correlation against scipy, and where it is not defined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from apportion.errors import InvalidInput
from apportion.metrics import spearman
from apportion.metrics.correlation import average_ranks


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 300), values=st.integers(2, 400), seed=st.integers(0, 1000))
def test_against_scipy_with_few_and_many_ties(n: int, values: int, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    a = torch.randint(0, values, (n,), generator=gen)
    b = a + torch.randint(0, values, (n,), generator=gen).float()
    assert average_ranks(a).tolist() == rankdata(a).tolist()
    if len(a.unique()) > 1 and len(b.unique()) > 1:
        assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)


def test_ranks_alone_matter() -> None:
    a = torch.tensor([0.3, -2.0, 7.0, 1e30, float("inf")])
    assert spearman(a, torch.tensor([2, 1, 3, 4, 5])) == 1
    assert spearman(a, -a) == -1
    assert spearman(a, torch.tensor([1, 1, 2, 2, 3])) == pytest.approx(3 / 10**0.5)


def test_undefined_for_constants() -> None:
    assert spearman(torch.ones(7), torch.arange(7)) is None
    assert spearman(torch.arange(7), torch.full((7,), 0.1)) is None
    assert spearman(torch.ones(1), torch.ones(1)) is None
    assert spearman(torch.ones(0), torch.ones(0)) is None


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match=r"\[3\] numbers .* \[4\]"):
        spearman(torch.ones(3), torch.ones(4))
    with pytest.raises(InvalidInput, match="NaN"):
        spearman(torch.tensor([1.0, float("nan")]), torch.arange(2))
