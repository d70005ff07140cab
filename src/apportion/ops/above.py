"""Pairs of token and feature, and which entries of a matrix lie above a floor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels

_CHUNK_BYTES = 1 << 22  # masks larger than this cost more in page faults than in comparisons
SPANS = (64, 32)
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
        for span in SPANS:
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
