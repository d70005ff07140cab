"""Exact selection of the largest entries of a matrix, per row or over all, without sorting the matrix.

All selections take strictly positive entries only, break ties towards the lower feature within a row and the
earlier row across rows, and return pairs in canonical order: by row, then by feature.

The idea is the same everywhere: find a cheap floor that is certain to leave enough entries, collect what lies
above it in one pass, and decide exactly among the few that remain.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from . import kernels
from .above import SPANS, Pairs, entries_above, group_maxima
from .spmm import offsets_of

_SAMPLE = 1 << 17


def row_floor(a: Tensor, k: Tensor, heads: Tensor | None = None) -> Tensor:
    """For each row a bound [n, 1] >= 0 with at least ``k [n]`` entries above it, if so many are positive.

    ``heads`` are ``group_maxima`` of ``a``, if the caller has them.
    """
    if len(a) == 0 or int(k.max()) == 0:
        return a.new_full((len(a), 1), torch.inf)
    if kernels.on_card(a) and a.dtype != torch.float64:
        from .kernels.largest import row_floors

        return row_floors(a, k)
    kth = kth_bound(a, k, heads)
    # One step down, so that "strictly above" keeps the k-th entry and its ties.
    floor = torch.nextafter(kth, kth.new_tensor(-torch.inf)).clamp(min=0)
    return floor.masked_fill((k <= 0)[:, None], torch.inf)


def kth_bound(a: Tensor, k: Tensor, heads: Tensor | None = None) -> Tensor:
    """For each row an entry [n, 1] that is at most its ``k [n]``-th largest; the largest where ``k <= 0``.

    The k-th largest of the maxima of disjoint groups is at most the k-th largest entry. ``heads`` are
    ``group_maxima`` of ``a``, if the caller has them.
    """
    d_sae = a.shape[1]
    k_max = most(k)
    span = min(d_sae // (4 * k_max), max(SPANS))
    if heads is None:
        heads = group_maxima(a, k_max)
    if heads is None and span >= 4:
        groups = d_sae // span
        # Group g holds the features g, g + groups, ...: the maximum runs over contiguous memory.
        heads = a[:, : span * groups].unflatten(1, (span, groups)).amax(1)
    elif heads is None:
        heads = a
    largest: Tensor = heads.topk(k_max, dim=1).values
    return largest.gather(1, (k - 1).clamp(min=0)[:, None])


def rank_in_rows(pairs: Pairs, values: Tensor, n: int) -> Tensor:
    """[nnz] int64: the rank of each entry in its row by falling value, ties towards the lower feature."""
    if len(values) == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    counts = torch.bincount(pairs.rows, minlength=n)
    starts = counts.cumsum(0) - counts
    slot = torch.arange(len(values), device=values.device) - starts[pairs.rows]
    padded = values.new_full((n, int(counts.max())), -torch.inf)
    padded[pairs.rows, slot] = values
    order = padded.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(padded.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)[pairs.rows, slot]


def are_largest(pairs: Pairs, values: Tensor, k: Tensor) -> Tensor:
    """[nnz] bool: which entries are among the ``k[b]`` largest of their row, ties towards the lower feature.

    Args:
        values: [nnz], above zero; k: [n] int64.
    """
    if kernels.on_card(values):
        from .kernels.largest import keep_largest

        return keep_largest(values, offsets_of(pairs.rows, len(k)), k)
    return rank_in_rows(pairs, values, len(k)) < k[pairs.rows]


def most(k: Tensor) -> int:
    """The largest of ``k [n]``, at least 1."""
    return max(int(k.max()), 1) if len(k) else 1


def select_rows(a: Tensor, k: Tensor) -> Pairs:
    """The ``k[b]`` largest entries of every row.

    Args:
        a: [n, d_sae], finite.
        k: [n] int64; values above d_sae mean all.
    """
    k = k.clamp(0, a.shape[1])
    heads = group_maxima(a, most(k))
    pairs = entries_above(a, row_floor(a, k, heads), heads)
    return pairs.take(are_largest(pairs, pairs.of(a), k))


def mark_rows(a: Tensor, k: int) -> Tensor:
    """[n, d_sae] bool: which entries are among the ``k`` largest of their row, as ``select_rows`` lists them.

    For matrices of which a good part is chosen; ``k`` and ``d_sae`` are at least 1.
    """
    k = min(k, a.shape[1])
    kth = a.kthvalue(a.shape[1] - k + 1, dim=1, keepdim=True).values
    marked = (a >= kth).logical_and_(a > 0)
    if bool((marked.sum(1) > k).any()):  # ties, of which the first ones count
        rows, features = select_rows(a, torch.full((len(a),), k, device=a.device))
        marked = torch.zeros_like(marked).index_put_((rows, features), torch.ones_like(marked[0, 0]))
    return marked


def first_in_rows(
    a: Tensor, k: int, shift: Tensor | None = None, least: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Columns and values, [n, k] each, of every row's first ``k`` positive entries by falling ``a - shift``.

    A row with fewer ends in zeros.

    Args:
        a: [n, d_sae], finite.
        k: 1 to d_sae.
        shift: [d_sae]; None for 0.
        least: [d_sae] what an entry must exceed to count, besides 0; None for nothing.
    """
    n, score = len(a), a
    if shift is not None or least is not None:
        bound = a.new_zeros(()) if least is None else least.clamp(min=0)
        score = torch.where(a > bound, a if shift is None else a - shift, -torch.inf)
    columns = torch.zeros(n, k, dtype=torch.int64, device=a.device)
    values = a.new_zeros(n, k)
    if n == 0:
        return columns, values
    bound = kth_bound(score, torch.full((n,), k, device=a.device))
    floor = torch.nextafter(bound, bound.new_tensor(-torch.inf))
    pairs = entries_above(score, floor.clamp(min=0) if shift is None else floor)
    place = rank_in_rows(pairs, pairs.of(score), n)
    first = (place < k).nonzero()[:, 0]
    at = pairs.rows[first], place[first]
    columns[at], values[at] = pairs.features[first], pairs.of(a)[first]
    return columns, values


def select_batch(a: Tensor, m: int) -> Pairs:
    """The ``m`` largest entries of the whole matrix ``a [n, d_sae]`` (all positive ones, if there are fewer)."""
    if m <= 0 or a.numel() == 0:
        return entries_above(a[:0], 0.0)
    floor = sampled_floor(a, m)
    pairs = entries_above(a, floor, group_maxima(a, -(-m // len(a))))
    if len(pairs.rows) < m and floor > 0:  # the sample misled: take every positive entry
        pairs = entries_above(a, 0.0)
    if len(pairs.rows) <= m:
        return pairs
    return pairs.take(first_of(pairs.of(a), m))


def first_of(values: Tensor, m: int) -> Tensor:
    """[nnz] bool: which of ``values [nnz]`` are among the ``m`` largest, ties to the earlier one."""
    if m <= 0 or len(values) <= m:
        return torch.full_like(values, m > 0, dtype=torch.bool)
    cut = values.kthvalue(len(values) - m + 1).values
    keep = values > cut
    ties = (values == cut).nonzero().squeeze(1)[: m - int(keep.sum())]
    keep[ties] = True
    return keep


def sampled_floor(a: Tensor, m: int) -> float:
    """A guess, from a strided sample, of a value that a few more than ``m`` entries exceed."""
    flat = a.view(-1)
    stride = max(len(flat) // _SAMPLE, 1)
    while stride > 1 and gcd(stride, a.shape[1]) > 1:  # else the sample would see few columns
        stride -= 1
    sample = flat[::stride]
    expected = m * len(sample) / len(flat)
    rank = int(expected + 5 * expected**0.5 + 8)
    floor = float(sample.topk(rank).values[-1]) if rank < len(sample) else 0.0
    return floor if floor > 0 else 0.0  # NaN too: it must not hide the finite entries
