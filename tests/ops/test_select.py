"""Selection: exact, canonical, ties towards the lower feature and the earlier row, positive entries only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.ops import above
from apportion.ops.above import entries_above, group_maxima
from apportion.ops.select import first_in_rows, mark_rows, row_floor, select_batch, select_rows


def rows_by_sorting(a: torch.Tensor, k: torch.Tensor) -> set[tuple[int, int]]:
    chosen = set()
    for row in range(len(a)):
        order = sorted(range(a.shape[1]), key=lambda f: (-float(a[row, f]), f))
        chosen |= {(row, f) for f in order[: int(k[row])] if a[row, f] > 0}
    return chosen


def batch_by_sorting(a: torch.Tensor, m: int) -> set[tuple[int, int]]:
    places = [(row, f) for row in range(len(a)) for f in range(a.shape[1]) if a[row, f] > 0]
    places.sort(key=lambda p: (-float(a[p]), p[0], p[1]))
    return set(places[:m])


def as_set(pairs) -> set[tuple[int, int]]:
    listed = list(zip(pairs.rows.tolist(), pairs.features.tolist(), strict=True))
    assert listed == sorted(listed), "pairs are not in canonical order"
    assert len(set(listed)) == len(listed), "a pair comes twice"
    return set(listed)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 200))
grains = st.sampled_from([0, 3, 30])  # coarse values make many ties


def matrix(shape: tuple[int, int], grain: int, seed: int) -> torch.Tensor:
    a = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (a * grain).round() / grain if grain else a


@settings(max_examples=150, deadline=None)
@given(shapes, grains, st.integers(0, 10_000), st.data())
def test_rows_equal_sorting(shape, grain, seed, data):
    a = matrix(shape, grain, seed)
    k = torch.tensor([data.draw(st.integers(0, shape[1] + 2)) for _ in range(shape[0])])
    assert as_set(select_rows(a, k)) == rows_by_sorting(a, k)


wide = st.tuples(st.integers(1, 9), st.sampled_from([128, 160, 384, 512]))


@settings(max_examples=100, deadline=None)
@given(wide, grains, st.integers(0, 10_000), st.integers(-3, 3), st.data())
def test_groups_of_neighbours_lead_to_the_same_entries(shape, grain, seed, shift, data):
    a = matrix(shape, grain, seed) + shift
    k = torch.tensor([data.draw(st.integers(0, shape[1] // 128)) for _ in range(shape[0])])
    heads = group_maxima(a, max(int(k.max()), 1))
    assert heads is not None and torch.equal(heads.amax(1), a.amax(1))
    assert as_set(select_rows(a, k)) == rows_by_sorting(a, k)
    for floor in (shift + 1.0, float(a.amax()), torch.inf, row_floor(a, k, heads), row_floor(a, k)):
        got, want = entries_above(a, floor, heads), (a > floor).nonzero()
        assert torch.equal(torch.stack(got), want.T)
    m = data.draw(st.integers(0, 2 * shape[0]))
    assert as_set(select_batch(a, m)) == batch_by_sorting(a, m)


def test_a_nan_hides_no_entry_of_its_group():
    a = matrix((6, 512), 0, 0)
    a[:, 70] = torch.nan
    finite = a.nan_to_num(nan=-1.0)
    heads = group_maxima(a, 1)
    assert heads is not None and heads.isnan().any()
    assert torch.equal(torch.stack(entries_above(a, 2.5, heads)), (finite > 2.5).nonzero().T)


def test_groups_are_gathered_a_few_at_a_time(monkeypatch):
    a = matrix((40, 512), 0, 3)
    monkeypatch.setattr(above, "_CHUNK_BYTES", 64 * 4 * 3)
    floor = a.topk(2, dim=1).values[:, 1:]
    assert torch.equal(torch.stack(entries_above(a, floor, group_maxima(a, 2))), (a > floor).nonzero().T)


def test_there_are_no_groups_where_they_would_be_small_or_memory_is_not_in_order():
    assert group_maxima(torch.ones(3, 100), 1) is None and group_maxima(torch.ones(3, 128), 2) is None
    assert group_maxima(torch.ones(256, 3).T, 1) is None and group_maxima(torch.ones(0, 256), 1) is None


@settings(max_examples=150, deadline=None)
@given(shapes, grains, st.integers(0, 10_000), st.data())
def test_marks_are_what_sorting_chooses(shape, grain, seed, data):
    a, k = matrix(shape, grain, seed), data.draw(st.integers(1, shape[1] + 2))
    marked = mark_rows(a, k)
    assert marked.shape == a.shape and marked.dtype == torch.bool
    chosen = {(int(row), int(f)) for row, f in marked.nonzero()}
    assert chosen == rows_by_sorting(a, torch.full((len(a),), k))


@settings(max_examples=150, deadline=None)
@given(shapes, grains, st.integers(0, 10_000), st.booleans(), st.data())
def test_first_in_rows_equals_sorting(shape, grain, seed, shifted, data):
    a, k = matrix(shape, grain, seed), data.draw(st.integers(1, shape[1]))
    shift = matrix(shape, grain, seed + 1)[0].abs() if shifted else torch.zeros(shape[1])
    columns, values = first_in_rows(a, k, shift if shifted else None)
    assert columns.shape == values.shape == (len(a), k)
    for row in range(len(a)):
        positive = [f for f in range(shape[1]) if a[row, f] > 0]
        order = sorted(positive, key=lambda f: (-float(a[row, f] - shift[f]), f))[:k]
        rest = [0] * (k - len(order))
        assert columns[row].tolist() == order + rest
        assert values[row].tolist() == a[row, order].tolist() + rest


def test_no_rows_have_no_first_entries():
    assert first_in_rows(torch.zeros(0, 5), 3)[0].shape == (0, 3)


@settings(max_examples=150, deadline=None)
@given(shapes, grains, st.integers(0, 10_000), st.floats(0, 1.2))
def test_batch_equals_sorting(shape, grain, seed, share):
    a = matrix(shape, grain, seed)
    m = int(share * a.numel())
    assert as_set(select_batch(a, m)) == batch_by_sorting(a, m)


def test_batch_stays_exact_where_the_sample_misleads():
    a = torch.full((64, 4096), -1.0)
    a[5] = torch.rand(4096) + 0.1  # all of the budget lies in one row
    a[:, ::3] = a[:, ::3].clamp(min=1e-4)
    for m in (1, 100, 4096, 5000):
        assert as_set(select_batch(a, m)) == batch_by_sorting(a, m)


def test_one_row_of_nan_does_not_hide_the_others():
    a = torch.rand(8, 4096) + 0.1
    a[3] = float("nan")
    assert set(select_batch(a, 50).rows.tolist()) <= {0, 1, 2, 4, 5, 6, 7}
    assert len(select_batch(a, 50).rows) == 50


def test_nothing_positive_gives_nothing():
    a = -torch.rand(7, 33)
    assert len(select_rows(a, torch.full((7,), 5)).rows) == 0
    assert len(select_batch(a, 50).rows) == 0
    assert len(select_batch(torch.zeros(7, 33), 50).rows) == 0


@pytest.mark.parametrize("d_sae", [8, 63, 1000, 16_384])
def test_a_large_matrix_agrees_with_topk(d_sae):
    a = torch.randn(300, d_sae, generator=torch.Generator().manual_seed(d_sae))
    k = min(32, d_sae)
    pairs = select_rows(a, torch.full((300,), k))
    want = torch.zeros_like(a).scatter_(1, a.topk(k, dim=1).indices, 1.0) * (a > 0)
    got = torch.zeros_like(a).index_put_((pairs.rows, pairs.features), torch.ones(len(pairs.rows)))
    assert torch.equal(got, want)
    pairs = select_batch(a, 300 * k)
    cut = a.flatten().topk(300 * k).values[-1].clamp(min=0)
    assert torch.equal(torch.stack(pairs), (a >= cut).logical_and(a > 0).nonzero().T)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_entries_above_equals_nonzero(n, d_sae, seed):
    a = torch.randn(n, d_sae, generator=torch.Generator().manual_seed(seed))
    for floor in (0.5, torch.rand(n, 1), torch.rand(d_sae)):
        assert torch.equal(torch.stack(entries_above(a, floor)), (a > floor).nonzero().T)


@given(st.integers(1, 600), st.integers(0, 1000), st.data())
@settings(max_examples=60, deadline=None)
def test_row_floor_leaves_enough(d_sae, seed, data):
    a = torch.randn(5, d_sae, generator=torch.Generator().manual_seed(seed))
    k = torch.tensor([data.draw(st.integers(0, d_sae)) for _ in range(5)])
    above = ((a > row_floor(a, k)) & (a > 0)).sum(1)
    assert (above >= torch.minimum(k, (a > 0).sum(1))).all()


def test_entries_at_pairs_whatever_the_layout():
    a = torch.arange(12.0).view(3, 4)
    pairs = entries_above(a, 5.0).take(torch.tensor([True, False, True, False, False, True]))
    for layout in (a, a.T.contiguous().T):
        assert pairs.of(layout).tolist() == [6.0, 8.0, 11.0]
