"""Selection by kernels: exactly what sorting gives, in blocks so small that all of it crosses their borders."""

from __future__ import annotations

import pytest
import torch

from apportion.ops.above import entries_above
from apportion.ops.select import row_floor, select_batch, select_rows
from apportion.ops.select_columns import select_columns

from ..test_select import as_set, batch_by_sorting, matrix, rows_by_sorting
from ..test_select_columns import agree

pytest.importorskip("triton", reason="Triton is not installed")
from apportion.ops.kernels import largest

SHAPES = [(1, 1), (4, 16), (3, 50)]
GRAINS = [0, 3]  # coarse values make many ties


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(largest, "_COLUMNS", 16)
    monkeypatch.setattr(largest, "_ENTRIES", 16)
    monkeypatch.setattr(largest, "_GROUPS", (16, 32))


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_sorting(shape, grain, device):
    a = matrix(shape, grain, seed=shape[1])
    k = torch.tensor([1, shape[1] // 5, shape[1] // 3, shape[1] + 2])[: shape[0]]
    assert as_set(select_rows(a.to(device), k.to(device))) == rows_by_sorting(a, k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_other_types_equal_sorting(dtype, device):
    a = matrix((3, 40), 0, seed=0).to(dtype)
    k = torch.tensor([0, 5, 17])
    assert as_set(select_rows(a.to(device), k.to(device))) == rows_by_sorting(a, k)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_and_columns_equal_sorting(shape, grain, device):
    a = matrix(shape, grain, seed=shape[1])
    for m in (0, a.numel() // 3, a.numel()):
        assert as_set(select_batch(a.to(device), m)) == batch_by_sorting(a, m)
    quota = torch.randint(0, shape[0] + 2, (shape[1],), generator=torch.Generator().manual_seed(grain))
    assert agree(a.to(device), quota.to(device))


@pytest.mark.parametrize("shape", SHAPES)
def test_entries_above_any_floor_equal_nonzero(shape, device):
    a = matrix(shape, 3, seed=1)
    for floor in (1 / 3, torch.rand(()), torch.rand(shape[0], 1), torch.rand(shape[1])):
        on_device = floor.to(device) if isinstance(floor, torch.Tensor) else floor
        found = torch.stack(entries_above(a.to(device), on_device)).cpu()
        assert torch.equal(found, (a > floor).nonzero().T)


def test_a_floor_leaves_enough_and_not_many_more(device):
    a = matrix((4, 400), 0, seed=2)
    k = torch.tensor([0, 1, 4, 300])  # the last is more than there are groups
    above = (a > row_floor(a.to(device), k.to(device)).cpu()).sum(1)
    assert above[0] == 0 and above[1] == 1 and 4 <= above[2] <= 8
    assert above[3] == (a[3] > 0).sum()


def test_only_numbers_above_zero_are_chosen(device):
    nan, inf, least = float("nan"), float("inf"), torch.finfo(torch.float32).smallest_normal / 2
    a = torch.tensor([[nan, -1.0, inf, 0.0, least, 2.0, -inf], [-1.0, -0.0, nan, 0.0, -2.0, -inf, -least]])
    k = torch.tensor([7, 7], device=device)
    assert as_set(select_rows(a.to(device), k)) == {(0, 2), (0, 4), (0, 5)}
    assert as_set(select_rows(a.to(device), k // 3)) == {(0, 2), (0, 5)}


def test_no_rows_give_nothing(device):
    none = torch.zeros(0, 5, device=device)
    assert len(select_rows(none, torch.zeros(0, dtype=torch.int64, device=device)).rows) == 0
    assert len(entries_above(none, 0.0).rows) == 0


def test_rows_may_lie_further_apart_than_an_int32_can_say(device, far_rows):
    assert as_set(entries_above(far_rows, 5.0)) == {(2, 6), (2, 7)}
    floors = largest.row_floors(far_rows, torch.tensor([1, 1, 3], device=device))
    assert floors[:2].tolist() == [[0], [0]] and 4.9 < float(floors[2]) < 5


def test_the_kernels_are_what_is_tested(device, monkeypatch):
    called = []
    for name in ("row_floors", "list_above", "keep_largest"):
        real = getattr(largest, name)
        monkeypatch.setattr(largest, name, lambda *a, name=name, real=real: called.append(name) or real(*a))
    a, two = torch.rand(2, 9, device=device), torch.tensor([2, 2], device=device)
    select_rows(a, two)
    assert called == ["row_floors", "list_above", "keep_largest"]
    select_columns(a, torch.ones(9, dtype=torch.int64, device=device))
    assert called[3:] == ["list_above", "keep_largest"]
