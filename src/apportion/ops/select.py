"""Exact selection of the largest entries of a matrix, per row or over all, without sorting the matrix.

All selections take strictly positive entries only, break ties towards the lower feature within a row and the
earlier row across rows, and return pairs in canonical order: by row, then by feature.

The idea is the same everywhere: find a cheap floor that is certain to leave enough entries, collect what lies
above it in one pass, and decide exactly among the few that remain.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels
from .spmm import offsets_of

_CHUNK_BYTES = 1 << 22  # masks larger than this cost more in page faults than in comparisons
_SAMPLE = 1 << 17
_SPANS = (64, 32)
"""Neighbours of which a maximum is taken."""
_SPAN_BYTES = 128
"""Below so many, torch is quicker with columns far apart."""
_FEW = 3
"""One in how many groups is few enough to gather them."""


class Pairs(NamedTuple):
    """Chosen (token, feature) pairs in canonical order, [nnz] int64 each."""

    rows: Tensor
    features: Tensor

    def take(self, keep: Tensor) -> Pairs:
        """The pairs where the mask ``keep [nnz]`` is true."""
        places = keep.nonzero()[:, 0]
        return Pairs(self.rows.index_select(0, places), self.features.index_select(0, places))

    def spread(self, t: Tensor) -> Tensor:
        """``t [d_sae]``, a number per feature, at every pair: [nnz]."""
        return t.index_select(0, self.features)

    def of(self, a: Tensor) -> Tensor:
        """The entries of ``a [n, d_sae]`` at the pairs, [nnz]."""
        if not a.is_contiguous():
            return a[self.rows, self.features]
        return a.view(-1).index_select(0, self.rows * a.shape[1] + self.features)  # a seventh of the time


class Everything(NamedTuple):
    """All pairs of ``n`` tokens and ``d_sae`` features, in canonical order, none of them listed.

    Where many affinities are above zero a matrix with zeros in it costs less than the list of the others.
    """

    n: int
    d_sae: int

    def spread(self, t: Tensor) -> Tensor:
        """``t [d_sae]``, a number per feature, in a shape that goes with that of all values, [n, d_sae]."""
        return t


def group_maxima(a: Tensor, k: int) -> Tensor | None:
    """[n, g]: the maxima of groups of neighbouring entries of a row, several times ``k`` of them.

    None where there are too few columns for that, or better ways. Where neighbours are alike, as in the first
    prefix of a Matryoshka dictionary, fewer groups are large: a bound from them is lower, and leaves more to see.
    """
    d_sae = a.shape[1]
    if a.numel() and a.is_contiguous() and not kernels.on_card(a):
        for span in _SPANS:
            if d_sae % span == 0 and d_sae >= 4 * k * span and span * a.itemsize >= _SPAN_BYTES:
                heads: Tensor = a.unflatten(1, (d_sae // span, span)).amax(2)
                return heads
    return None


def entries_above(a: Tensor, floor: Tensor | float, heads: Tensor | None = None) -> Pairs:
    """All entries of ``a [n, d_sae]`` strictly above ``floor`` (a number, [n, 1] or [d_sae]).

    Args:
        heads: ``group_maxima`` of ``a``, if the caller has them: unless there is a floor per feature, groups
            without such an entry need no look.
    """
    per_feature = isinstance(floor, Tensor) and floor.ndim == 1
    if heads is not None and not per_feature and (pairs := _above_in_groups(a, floor, heads)) is not None:
        return pairs
    if a.is_floating_point() and kernels.on_card(a):
        from .kernels.largest import list_above

        return Pairs(*list_above(a, floor))
    n, d_sae = a.shape
    # A multiple of eight rows, so that every mask but the last can be read as 64-bit words.
    step = max(_CHUNK_BYTES // max(d_sae, 1) // 8, 1) * 8
    if a.device.type != "cpu":
        step = max(n, 1)
    per_row = isinstance(floor, Tensor) and floor.ndim == 2
    found = []
    for start in range(0, n, step):
        part = a[start : start + step]
        bound = floor[start : start + step] if per_row else floor  # type: ignore[index]
        found.append(_nonzero(part > bound) + start * d_sae)
    if not found:
        empty = torch.empty(0, dtype=torch.int64, device=a.device)
        return Pairs(empty, empty)
    flat = found[0] if len(found) == 1 else torch.cat(found)
    rows = torch.div(flat, d_sae, rounding_mode="floor")
    return Pairs(rows, flat - rows * d_sae)


def _above_in_groups(a: Tensor, floor: Tensor | float, heads: Tensor) -> Pairs | None:
    """``entries_above`` from the groups that have one; None if these are many."""
    d_sae, per_row = a.shape[1], heads.shape[1]
    span = d_sae // per_row
    groups = _nonzero((heads <= floor).logical_not_())  # so that a NaN hides no entry beside it
    if len(groups) * _FEW > heads.numel():
        return None
    found = []
    for some in groups.split(_CHUNK_BYTES // (span * a.itemsize)):
        bound = floor
        if isinstance(floor, Tensor) and floor.ndim == 2:
            bound = floor.index_select(0, torch.div(some, per_row, rounding_mode="floor"))
        place = _nonzero(a.view(-1, span).index_select(0, some) > bound)
        group = torch.div(place, span, rounding_mode="floor")
        found.append(some.index_select(0, group) * span + (place - group * span))
    flat = found[0] if len(found) == 1 else torch.cat(found)
    rows = torch.div(flat, d_sae, rounding_mode="floor")
    return Pairs(rows, flat - rows * d_sae)


def _nonzero(mask: Tensor) -> Tensor:
    """Flat positions of the true entries of a sparse contiguous mask, ascending."""
    flat = mask.reshape(-1)
    if mask.device.type != "cpu" or len(flat) % 8:
        return flat.nonzero().squeeze(1)
    words = flat.view(torch.int64).nonzero().squeeze(1)  # eight entries at a look
    word, byte = flat.view(-1, 8).index_select(0, words).nonzero(as_tuple=True)
    return words.index_select(0, word) * 8 + byte


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
    span = min(d_sae // (4 * k_max), _SPANS[0])
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
