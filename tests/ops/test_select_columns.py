"""Columns: exact to any depth, canonical, ties towards the earlier row, positive entries only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.ops.select_columns import column_floor, select_columns

from .test_select import as_set, grains, matrix


def agree(a: torch.Tensor, quota: torch.Tensor) -> bool:
    """Whether the answer is that of sorting every column in full, in canonical order."""
    rank = a.double().sort(dim=0, descending=True, stable=True).indices.argsort(dim=0)
    return torch.equal(torch.stack(select_columns(a, quota)), ((rank < quota) & (a > 0)).nonzero().T)


def quotas(n_features: int, n: int, seed: int, deep: float) -> torch.Tensor:
    """From 0 to more than n; the larger ``deep``, the more are large."""
    draws = torch.rand(n_features, generator=torch.Generator().manual_seed(seed))
    return ((n + 3) * draws ** (1 / deep)).long()


shapes = st.tuples(st.integers(1, 200), st.integers(1, 12))


@settings(max_examples=200, deadline=None)
@given(shapes, grains, st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 1.0, 3.0]))
def test_columns_equal_sorting(shape, grain, seed, deep):
    a, quota = matrix(shape, grain, seed), quotas(shape[1], shape[0], seed, deep)
    assert agree(a, quota)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_depth_at_once(dtype):
    n = 600
    quota = torch.arange(0, n + 20, 3).repeat_interleave(2)  # all tiers, none, all and more than all
    a = matrix((n, len(quota)), 0, 1).to(dtype)
    assert agree(a, quota)


@pytest.mark.parametrize("m", [1, 4, 5, 16, 17, 64, 65, 128, 129, 256, 257, 599, 600])
@pytest.mark.parametrize("n", [31, 32, 127, 128, 600, 2100])
def test_one_depth_for_all(m, n):
    a = matrix((n, 40), 30, m)
    quota = torch.full((40,), m)
    assert agree(a, quota)


def test_a_column_whose_large_entries_fall_into_one_group():
    a = torch.full((640, 3), 1e-3)
    a[::128, 0] = 5.0
    a[:20, 1] = 5.0
    a[:, 2] = -1.0
    quota = torch.tensor([4, 4, 4])
    assert agree(a, quota)


def test_nothing_to_choose_gives_nothing():
    ones = torch.ones(64, dtype=torch.int64)
    for a in (-torch.rand(300, 64), torch.zeros(300, 64), torch.rand(0, 64)):
        assert len(select_columns(a, 5 * ones).rows) == 0
    assert len(select_columns(torch.rand(300, 64), 0 * ones).rows) == 0


def test_columns_may_change_places():
    a, quota = matrix((300, 50), 3, 0), quotas(50, 300, 0, 0.3)
    places = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    moved = as_set(select_columns(a[:, places].contiguous(), quota[places]))
    assert {(row, int(places[f])) for row, f in moved} == as_set(select_columns(a, quota))


def test_the_matrix_and_the_quotas_are_left_alone():
    a, quota = matrix((200, 30), 3, 0), quotas(30, 200, 0, 1.0)
    before = a.clone(), quota.clone()
    select_columns(a, quota)
    assert torch.equal(a, before[0]) and torch.equal(quota, before[1])


@settings(max_examples=100, deadline=None)
@given(shapes, grains, st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 3.0]))
def test_the_floor_leaves_enough(shape, grain, seed, deep):
    a, quota = matrix(shape, grain, seed), quotas(shape[1], shape[0], seed, deep).clamp(max=shape[0])
    floor = column_floor(a, quota)
    assert bool((floor >= 0).all())
    assert bool(((a > floor).sum(0) >= torch.minimum(quota, (a > 0).sum(0))).all())


@pytest.mark.parametrize("m", [1, 4, 16, 64, 256])
def test_the_floor_leaves_little_more_than_enough(m):
    a = matrix((2048, 300), 0, m).abs()
    above = (a > column_floor(a, torch.full((300,), m))).sum()
    assert m * 300 <= int(above) <= 2 * m * 300
