"""Sums and products of rows that a ragged list of entries names: the decoder and every sparse gradient.

Nothing is added atomically: a program owns what it writes and takes its entries in their order, so that a result
is the same to the bit each time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 8  # that a program has under way at a time: their loads do not wait for one another
_BLOCK = 512  # columns


@triton.jit
def _gather_sum(
    out,
    offsets,
    columns,
    values,
    dense,
    d,
    out_stride,
    dense_stride,
    ADD: tl.constexpr,
    SUM: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (r, c): block c of ``out[r] (+)= sum over entries j of row r of values[j] dense[columns[j]]``."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], SUM)
    for first in range(start, stop, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        present = entry < stop
        column = tl.load(columns + entry, mask=present, other=0).to(tl.int64)
        value = tl.load(values + entry, mask=present, other=0).to(SUM)
        place = dense + column[:, None] * dense_stride + at[None, :]
        tile = tl.load(place, mask=present[:, None] & (at < d)[None, :], other=0).to(SUM)
        total += tl.sum(value[:, None] * tile, axis=0)
    goal, inside = out + row * out_stride + at, at < d
    if ADD:
        if stop > start:  # most features have no entry: their rows are not touched
            total += tl.load(goal, mask=inside, other=0).to(SUM)
            tl.store(goal, total.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(goal, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gather_dot(
    out,
    a,
    rows,
    b,
    columns,
    nnz,
    d,
    a_stride,
    b_stride,
    SUM: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program p: ``out[j] = a[rows[j]] . b[columns[j]]`` for the p-th group of entries."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    present = entry < nnz
    row = tl.load(rows + entry, mask=present, other=0).to(tl.int64)
    column = tl.load(columns + entry, mask=present, other=0).to(tl.int64)
    total = tl.zeros([ENTRIES], SUM)
    for first in range(0, d, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = present[:, None] & (at < d)[None, :]
        left = tl.load(a + row[:, None] * a_stride + at[None, :], mask=mask, other=0).to(SUM)
        right = tl.load(b + column[:, None] * b_stride + at[None, :], mask=mask, other=0).to(SUM)
        total += tl.sum(left * right, axis=1)
    tl.store(out + entry, total.to(out.dtype.element_ty), mask=present)


def gathered(offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """``A @ dense`` for the CSR matrix ``A [r, c]``: [r, d] in the dtype of ``dense``. See ``add_gathered``."""
    out = dense.new_empty(len(offsets) - 1, dense.shape[1])
    _launch_sum(out, offsets, columns, values, dense, add=False)
    return out


def add_gathered(out: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> None:
    """``out += A @ dense`` in place, for the CSR matrix ``A [r, c]`` of ``(offsets, columns, values)``.

    Args:
        out: [r, d]; dense: [c, d]. The entries of a row of either lie together; rows may lie apart.
        offsets: [r + 1] int64; columns: [nnz] int64, in any order within a row, repeats add up.
        values: [nnz].
    """
    _launch_sum(out, offsets, columns, values, dense, add=True)


def dots(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """``a[rows[j]] . b[columns[j]]`` for every j: [nnz], float64 if ``a`` or ``b`` is, else float32.

    Args:
        a: [n, d]; b: [c, d]. The entries of a row of either lie together; rows may lie apart.
        rows, columns: [nnz] int64.
    """
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    out = a.new_empty(len(rows), dtype=wide)
    rows, columns = rows.contiguous(), columns.contiguous()
    sizes = (len(rows), a.shape[1], a.stride(0), b.stride(0))
    blocks = {"ENTRIES": _ENTRIES, "BLOCK": _block(a.shape[1])}
    with torch.cuda.device_of(out):
        _gather_dot[(triton.cdiv(len(rows), _ENTRIES),)](
            *(out, a, rows, b, columns), *sizes, SUM=_sum_type(a, b), **blocks, enable_fp_fusion=True
        )
    return out


def _launch_sum(
    out: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor, *, add: bool
) -> None:
    columns, values = columns.contiguous(), values.contiguous()
    sizes = (dense.shape[1], out.stride(0), dense.stride(0))
    blocks = {"ENTRIES": _ENTRIES, "BLOCK": _block(dense.shape[1])}
    with torch.cuda.device_of(out):
        _gather_sum[(len(out), triton.cdiv(dense.shape[1], blocks["BLOCK"]))](
            *(out, offsets, columns, values, dense),
            *sizes,
            ADD=add,
            SUM=_sum_type(values, dense),
            **blocks,
            enable_fp_fusion=True,
        )


def _block(d: int) -> int:
    """Columns that a program works on at a time."""
    return min(int(triton.next_power_of_2(d)), _BLOCK)


def _sum_type(*tensors: Tensor) -> Any:
    return tl.float64 if any(t.dtype == torch.float64 for t in tensors) else tl.float32
