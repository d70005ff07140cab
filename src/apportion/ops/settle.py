"""Selection that rounding cannot change: entries too close to call in float32 are decided in float64.

A product in float32 depends, in its last bits, on how many rows are multiplied together. Inference must not: a
token has the same features alone and in any batch. The error of a dot product of length d is at most
(d + 2) 2^-24 (|x| |w| + |b|) (Higham 2002, 3.1), so only entries within that band of a boundary are in doubt;
there are about one per token under top-k and few under a threshold, and these are computed again in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .above import Pairs, entries_above, group_maxima
from .select import most, rank_in_rows, row_floor

Exact = Callable[[Pairs], Tensor]
"""Float64 pre-activations [nnz] of the pairs."""

_PAIRS_AT_ONCE = 1 << 14
_ROWS_AT_ONCE = 1 << 12


def error_band(centred: Tensor, weight: Tensor, b_enc: Tensor) -> Tensor:
    """[n, 1]: a bound on the rounding error of every float32 pre-activation of a row."""
    largest = torch.linalg.vector_norm(weight, dim=1).max()
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    tf32 = centred.is_cuda and torch.backends.cuda.matmul.allow_tf32
    unit = 2.0**-11 if tf32 else (centred.shape[1] + 2) * 2.0**-24
    band: Tensor = (length * largest + b_enc.abs().max()) * unit
    return band


def exact_values(centred: Tensor, weight: Tensor, b_enc: Tensor, pairs: Pairs) -> Tensor:
    """Pre-activations [nnz] of the pairs in float64, each a function of its own row and feature alone."""
    parts = [
        (centred[rows].double() * weight[features].double()).sum(-1) + b_enc[features].double()
        for rows, features in zip(*(side.split(_PAIRS_AT_ONCE) for side in pairs), strict=True)
    ]
    return torch.cat(parts) if parts else centred.new_zeros(0, dtype=torch.float64)


def exact_rows(centred: Tensor, weight: Tensor, b_enc: Tensor) -> Tensor:
    """All pre-activations [n, d_sae] of ``centred [n, d_in]`` in float64."""
    parts = [
        torch.addmm(bias.double(), centred.double(), part.double().T)
        for part, bias in zip(weight.split(_ROWS_AT_ONCE), b_enc.split(_ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts, dim=1)


def settled_above(a: Tensor, theta: Tensor, band: Tensor, exact: Exact) -> Pairs:
    """Entries of ``a [n, d_sae]`` truly above ``theta`` ([] or [d_sae], at least 0); ``band [n, 1]``."""
    # With a threshold per feature, one band for all rows keeps the floor a vector.
    widest = band.amax() if len(band) else theta.new_zeros(())
    pairs = entries_above(a, theta - (band if theta.ndim == 0 else widest))
    values = a[pairs.rows, pairs.features].double()
    bound = theta.double().expand(a.shape[1])[pairs.features]
    doubtful = values <= bound + band.double()[pairs.rows, 0]
    values[doubtful] = exact(pairs.take(doubtful))
    return pairs.take(values > bound)


def settled_rows(a: Tensor, k: Tensor, band: Tensor, exact: Exact) -> Pairs:
    """The ``k[b]`` truly largest positive entries of every row of ``a [n, d_sae]``; ``band [n, 1]``."""
    n = len(a)
    k = k.clamp(0, a.shape[1])
    heads = group_maxima(a, most(k))
    pairs = entries_above(a, row_floor(a, k, heads) - 2 * band, heads)
    values = a[pairs.rows, pairs.features].double()
    rank = rank_in_rows(pairs, values, n)
    # The boundary of a row: its k-th value, or zero where fewer entries are positive.
    boundary = values.new_zeros(n)
    last = rank == k[pairs.rows] - 1
    boundary[pairs.rows[last]] = values[last].clamp(min=0)
    doubtful = (values - boundary[pairs.rows]).abs() <= 2 * band.double()[pairs.rows, 0]
    values[doubtful] = exact(pairs.take(doubtful))
    rank = rank_in_rows(pairs, values, n)
    return pairs.take((rank < k[pairs.rows]) & (values > 0))
