"""Sparse times dense: the decoder, and, added into a buffer, every weight gradient."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels


class Grouped(NamedTuple):
    """Entries sorted by a key: those of key ``i`` are ``offsets[i] : offsets[i + 1]``."""

    order: Tensor
    offsets: Tensor


def group_by(keys: Tensor, n_keys: int) -> Grouped:
    """Sort entries by ``keys [nnz]`` (int64, below ``n_keys``), stably."""
    return Grouped(torch.sort(keys, stable=True).indices, offsets_of(keys, n_keys))


def offsets_of(keys: Tensor, n_keys: int) -> Tensor:
    """[n_keys + 1] int64: where the entries of each key begin once they are sorted by ``keys [nnz]``."""
    offsets = torch.zeros(n_keys + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(torch.bincount(keys, minlength=n_keys), 0, out=offsets[1:])
    return offsets


def spmm(offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """``A @ dense`` for the CSR matrix ``A [r, c]`` of ``(offsets, columns, values)``; differentiable in values.

    Args:
        offsets: [r + 1] int64; columns: [nnz] int64, in any order within a row, repeats add up.
        values: [nnz].
        dense: [c, d], contiguous, detached.

    Returns:
        [r, d].
    """
    if kernels.on_card(dense):
        return _GatherSum.apply(offsets, columns, values, dense)  # type: ignore[no-any-return]
    return F.embedding_bag(
        columns, dense, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


class _GatherSum(torch.autograd.Function):
    """What ``embedding_bag`` computes, by the kernels."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
        from .kernels.ragged import gathered

        ctx.save_for_backward(offsets, columns, dense)
        ctx.dtype = values.dtype
        return gathered(offsets, columns, values, dense)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        offsets, columns, dense = ctx.saved_tensors
        return None, None, pair_dots(grad, rows_of(offsets, len(columns)), dense, columns).to(ctx.dtype), None


def rows_of(offsets: Tensor, nnz: int) -> Tensor:
    """[nnz] int64: the row of each entry of a CSR matrix with ``offsets [r + 1]``."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=nnz)


def pair_dots(a: Tensor, rows: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """``a[rows[j]] . b[columns[j]]`` for every j: [nnz]; ``a [n, d]``, ``b [c, d]``. Not differentiable."""
    if kernels.on_card(a):
        from .kernels.ragged import dots

        return dots(a.contiguous(), rows, b.contiguous(), columns)
    return (a[rows] * b[columns]).sum(-1)


def add_spmm(out: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> None:
    """``out += A @ dense`` in place, for the CSR matrix ``A [r, c]`` of ``(offsets, columns, values)``.

    Args:
        out: [r, d], contiguous.
        offsets: [r + 1] int64; columns: [nnz] int64, in any order within a row, repeats add up.
        values: [nnz].
        dense: [c, d], contiguous.
    """
    if len(columns) == 0:
        return
    if kernels.on_card(out):
        from .kernels.ragged import add_gathered

        add_gathered(out, offsets, columns, values, dense)
        return
    if out.device.type == "cpu" and not torch.backends.mkl.is_available():
        out += spmm(offsets, columns, values, dense)
        return
    with warnings.catch_warnings():  # one notice that CSR is a beta feature; the result is tested here
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.sparse_csr_tensor(
            offsets, columns, values, size=(out.shape[0], dense.shape[0]), check_invariants=False
        )
    torch.addmm(out, matrix, dense, out=out)
