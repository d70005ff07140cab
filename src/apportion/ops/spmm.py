"""Sparse times dense, added into a buffer: how every weight gradient is computed."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Grouped(NamedTuple):
    """Entries sorted by a key: those of key ``i`` are ``offsets[i] : offsets[i + 1]``."""

    order: Tensor
    offsets: Tensor


def group_by(keys: Tensor, n_keys: int) -> Grouped:
    """Sort entries by ``keys [nnz]`` (int64, below ``n_keys``), stably."""
    offsets = torch.zeros(n_keys + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(torch.bincount(keys, minlength=n_keys), 0, out=offsets[1:])
    return Grouped(torch.sort(keys, stable=True).indices, offsets)


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
    if out.device.type == "cpu" and not torch.backends.mkl.is_available():
        out += F.embedding_bag(
            columns, dense, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        return
    with warnings.catch_warnings():  # one notice that CSR is a beta feature; the result is tested here
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.sparse_csr_tensor(
            offsets, columns, values, size=(out.shape[0], dense.shape[0]), check_invariants=False
        )
    torch.addmm(out, matrix, dense, out=out)
