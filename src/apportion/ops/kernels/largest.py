"""Choosing from a matrix too large to sort: a floor per row, the entries above it, the largest of a ragged row.

Floats above zero are ordered as their bits are, read as integers: the k-th largest of some is found bit by bit,
each bit at the price of one count. Anything else, NaN included, counts as zero and is never chosen.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 2048  # that a program compares
_ENTRIES = 256  # of a ragged row that a program has under way at a time
_GROUPS = 1024, 8192  # fewest and most groups of a row whose maxima are held
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


@triton.jit
def _bits(value, INTEGER: tl.constexpr):
    """Integers in the order of the positive values, zero for all others."""
    return tl.where(value > 0, value.to(INTEGER, bitcast=True), 0)


@triton.jit
def _row_floors(out, a, k, d, stride, GROUPS: tl.constexpr, TOP: tl.constexpr):
    """Program r: just below the k[r]-th largest of the maxima of GROUPS groups of row r's columns."""
    row = tl.program_id(0).to(tl.int64)
    wanted = tl.load(k + row + tl.arange(0, 1))
    largest = tl.zeros([GROUPS], tl.int32)
    for first in range(0, d, GROUPS):
        at = first + tl.arange(0, GROUPS)
        value = tl.load(a + row * stride + at, mask=at < d, other=0).to(tl.float32)
        largest = tl.maximum(largest, _bits(value, tl.int32))
    bound = tl.zeros([1], tl.int32)
    for step in range(TOP):
        higher = bound + (1 << (TOP - 1 - step))
        enough = tl.sum((largest >= higher).to(tl.int64), axis=0) >= wanted
        bound = tl.where(enough, higher, bound)
    # One step down, so that "strictly above" keeps the k-th maximum and its ties.
    floor = tl.maximum(bound - 1, 0).to(tl.float32, bitcast=True)
    tl.store(out + row + tl.arange(0, 1), tl.where(wanted > 0, floor, float("inf")))


@triton.jit
def _count_above(counts, a, floor, d, stride, row_step, column_step, BLOCK: tl.constexpr):
    """Program (r, c): how many entries of block c of row r exceed the floor."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(a + row * stride + at, mask=at < d, other=0)
    bound = tl.load(floor + row * row_step + at * column_step, mask=at < d, other=float("inf"))
    found = tl.sum((value > bound).to(tl.int32), axis=0)
    tl.store(counts + row * tl.num_programs(1) + block, found)


@triton.jit
def _list_above(rows, columns, ends, a, floor, d, stride, row_step, column_step, BLOCK: tl.constexpr):
    """Program (r, c): writes the entries of block c of row r that exceed the floor to their places."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(a + row * stride + at, mask=at < d, other=0)
    bound = tl.load(floor + row * row_step + at * column_step, mask=at < d, other=float("inf"))
    found = value > bound
    count = tl.cumsum(found.to(tl.int32), axis=0)
    start = tl.load(ends + row * tl.num_programs(1) + block) - tl.sum(found.to(tl.int32), axis=0)
    place = start + count - 1
    tl.store(rows + place, tl.zeros([BLOCK], tl.int64) + row, mask=found)
    tl.store(columns + place, at.to(tl.int64), mask=found)


@triton.jit
def _keep_largest(keep, values, offsets, k, INTEGER: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """Program r: marks the k[r] largest positive entries of ragged row r, of equal ones the first."""
    row = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    wanted = tl.load(k + row)
    bound = tl.zeros([1], INTEGER)  # what becomes the k-th largest
    for step in range(tl.where(stop - start > wanted, TOP, 0)):  # else all that is positive
        higher = bound + (tl.full([1], 1, INTEGER) << (TOP - 1 - step))
        count = tl.zeros([1], tl.int64)
        for first in range(start, stop, BLOCK):
            entry = first + tl.arange(0, BLOCK)
            bits = _bits(tl.load(values + entry, mask=entry < stop, other=0), INTEGER)
            count += tl.sum((bits >= higher).to(tl.int64), axis=0)
        bound = tl.where(count >= wanted, higher, bound)
    left = tl.zeros([1], tl.int64) + wanted  # for those that equal it
    for first in range(start, stop, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        bits = _bits(tl.load(values + entry, mask=entry < stop, other=0), INTEGER)
        left -= tl.sum((bits > bound).to(tl.int64), axis=0)
    for first in range(start, stop, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        bits = _bits(tl.load(values + entry, mask=entry < stop, other=0), INTEGER)
        equal = (bits == bound) & (bits > 0)
        place = tl.cumsum(equal.to(tl.int64), axis=0)
        tl.store(keep + entry, (bits > bound) | (equal & (place <= left)), mask=entry < stop)
        left -= tl.sum(equal.to(tl.int64), axis=0)


def row_floors(a: Tensor, k: Tensor) -> Tensor:
    """For each row a bound [n, 1] >= 0 with at least ``k [n]`` entries above it, if so many are positive.

    It is infinite where ``k <= 0``. The k-th largest of the maxima of disjoint groups is at most the k-th largest
    entry, and close to it with several times k groups.

    Args:
        a: [n, d_sae], finite, float32 or narrower.
        k: [n] int64.
    """
    n, d_sae = a.shape
    floors = torch.empty(n, 1, device=a.device)
    if n == 0:
        return floors
    a = _rows(a)
    fewest, most = _GROUPS
    groups = min(triton.next_power_of_2(max(4 * int(k.max()), fewest)), most, triton.next_power_of_2(d_sae))
    with torch.cuda.device_of(a):
        _row_floors[(n,)](floors, a, k.contiguous(), d_sae, a.stride(0), GROUPS=groups, TOP=31, **_OPTIONS)
    return floors


def list_above(a: Tensor, floor: Tensor | float) -> tuple[Tensor, Tensor]:
    """Rows and columns, [nnz] int64 each in canonical order, of the entries of ``a`` strictly above ``floor``.

    Args:
        a: [n, d_sae].
        floor: a number, or of a shape that broadcasts to that of ``a``.
    """
    n, d_sae = a.shape
    a = _rows(a)
    floor = torch.as_tensor(floor, dtype=_wide(a.dtype), device=a.device).expand(n, d_sae)
    grid = (n, triton.cdiv(d_sae, _COLUMNS))
    counts = torch.zeros(grid, dtype=torch.int64, device=a.device)
    what = (a, floor, d_sae, a.stride(0), *floor.stride())
    with torch.cuda.device_of(a):
        _count_above[grid](counts, *what, BLOCK=_COLUMNS, **_OPTIONS)
        ends = counts.view(-1).cumsum(0)
        rows = torch.empty(int(ends[-1]) if len(ends) else 0, dtype=torch.int64, device=a.device)
        columns = torch.empty_like(rows)
        if len(rows):
            _list_above[grid](rows, columns, ends, *what, BLOCK=_COLUMNS, **_OPTIONS)
    return rows, columns


def keep_largest(values: Tensor, offsets: Tensor, k: Tensor) -> Tensor:
    """[nnz] bool: the ``k[r]`` largest positive entries of every ragged row, of equal ones the first.

    Args:
        values: [nnz].
        offsets: [r + 1] int64; k: [r] int64.
    """
    keep = torch.empty(len(values), dtype=torch.bool, device=values.device)
    values, k = values.to(_wide(values.dtype)).contiguous(), k.contiguous()
    integer, top = (tl.int64, 63) if values.dtype == torch.float64 else (tl.int32, 31)
    with torch.cuda.device_of(values):
        _keep_largest[(len(k),)](
            *(keep, values, offsets, k), INTEGER=integer, TOP=top, BLOCK=_ENTRIES, **_OPTIONS
        )
    return keep


def _rows(a: Tensor) -> Tensor:
    """``a [n, d]`` with the entries of a row side by side."""
    return a if a.stride(1) == 1 else a.contiguous()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
