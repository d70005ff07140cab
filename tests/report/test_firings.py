"""Contexts of features, against a search through the dense code."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.code import Code
from apportion.report.catalogue import LEVELS, _context
from apportion.report.firings import Firings

Dense = list[list[int]]


@st.composite
def codes(draw: st.DrawFn) -> tuple[torch.Tensor, list[int]]:
    """[n, 3] of few different values, so that some are equal, and the first rows of contexts."""
    n = draw(st.integers(1, 40))
    rows = draw(
        st.lists(st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=3, max_size=3), min_size=n, max_size=n)
    )
    begins = draw(st.sets(st.integers(1, n - 1), max_size=6)) if n > 1 else set()
    return torch.tensor(rows, dtype=torch.float32), [0, *sorted(begins)]


def naive(column: list[float], begins: list[int], n: int) -> list[int]:
    """Row of the strongest token of each of the best ``n`` contexts."""
    peaks = []
    for first, last in zip(begins, [*begins[1:], len(column)], strict=True):
        own = column[first:last]
        if max(own) > 0:
            peaks.append((-max(own), first + own.index(max(own))))
    return [row for _, row in sorted(peaks)[:n]]


@settings(max_examples=150, deadline=None)
@given(codes(), st.integers(1, 5), st.integers(0, 6))
def test_the_strongest_contexts_are_those_of_a_plain_search(
    given_: tuple[torch.Tensor, list[int]], n: int, reach: int
) -> None:
    dense, begins = given_
    firings = Firings(Code.from_dense(dense), np.array(begins))
    ends = [*begins[1:], len(dense)]
    for feature in range(3):
        column = dense[:, feature].tolist()
        found = firings.strongest(feature, n, reach)
        assert [window.peak for window in found] == naive(column, begins, n)
        for window in found:
            context = max(c for c, first in enumerate(begins) if first <= window.peak)
            assert window.first == max(begins[context], window.peak - reach)
            assert window.last == min(ends[context], window.peak + reach + 1)
            inside = {row: column[row] for row in range(window.first, window.last) if column[row] > 0}
            assert dict(zip(window.rows.tolist(), window.values.tolist(), strict=True)) == inside


def test_a_context_in_the_page_says_every_value_to_one_of_its_levels() -> None:
    torch.manual_seed(0)
    dense = torch.rand(60, 1) * (torch.rand(60, 1) < 0.5)
    (window,) = Firings(Code.from_dense(dense), np.array([0])).strongest(0, 1, reach=30)
    peak = float(dense.max())
    first, strongest, levels = _context(window, peak)
    assert isinstance(first, int) and isinstance(strongest, int) and isinstance(levels, str)
    assert len(levels) == window.last - window.first and levels[strongest] == LEVELS[-1]
    read = torch.tensor([LEVELS.index(level) / (len(LEVELS) - 1) * peak for level in levels])
    true = dense[window.first : window.last, 0]
    assert float((read - true).abs().max()) <= peak / (len(LEVELS) - 1)
    assert torch.equal(read > 0, true > 0)
