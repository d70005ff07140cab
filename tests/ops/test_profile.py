"""The profile of a row against its formula, row by row, and that nothing in it jumps."""

from __future__ import annotations

import math

import torch

from apportion.ops.above import entries_above
from apportion.ops.profile import FLOOR, N_PROFILE, profile

LEVEL = torch.tensor(0.2, dtype=torch.float64)


def affinities(n=30, d_sae=50, seed=0):
    return torch.randn(n, d_sae, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def profile_of(a, level=LEVEL):
    pairs = entries_above(a, float(FLOOR * level))
    return profile(pairs, pairs.of(a), len(a), level)


def by_hand(row):
    """The numbers of one row, in plain Python."""
    ratios = [value / float(LEVEL) for value in row.tolist() if value > FLOOR * float(LEVEL)]
    levels = [FLOOR * 2 ** (i / 2) for i in range(8)]
    counts = [sum(min(max(2 * math.log2(r / low), 0), 1) for r in ratios) for low in levels]
    return [
        math.log(s + 0.5) for s in (*counts, sum(r - FLOOR for r in ratios), sum(r * r - 0.5 for r in ratios))
    ]


def test_the_numbers_are_those_of_the_docstring():
    a = affinities()
    want = torch.tensor([by_hand(row) for row in a], dtype=torch.float64)
    assert want.shape == (30, N_PROFILE) and want.std(0).min() > 0.01
    torch.testing.assert_close(profile_of(a), want, rtol=1e-12, atol=1e-12)


def test_a_row_without_affinities_and_no_rows_at_all():
    a = affinities()
    a[3] = -1.0
    assert (profile_of(a)[3] == math.log(0.5)).all()
    assert profile_of(a[:0]).shape == (0, N_PROFILE)


def test_nothing_jumps_where_an_affinity_passes_a_level():
    for share in [FLOOR * 2 ** (i / 2) for i in range(9)]:
        below, above = affinities(1), affinities(1)
        below[0, 0], above[0, 0] = share * LEVEL * (1 - 1e-9), share * LEVEL * (1 + 1e-9)
        torch.testing.assert_close(profile_of(below), profile_of(above), rtol=0, atol=1e-7)


def test_units_do_not_matter():
    a = affinities()
    assert torch.equal(profile_of(a / 4, LEVEL / 4), profile_of(a))
