"""Exact selection of the largest entries of every column, each column to a depth of its own.

The idea is that of ``select``: a floor that is certain to leave enough entries, one pass that collects what lies
above it, and an exact decision among the few that remain. The matrix is neither sorted nor copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels
from .above import Pairs, entries_above
from .spmm import group_by

_GROUPS = 8  # of rows, for the smallest quotas
_FINER = 4  # times as many for the next larger ones
_FEW = 1 / 128  # share of the columns that may be looked at row by row


def select_columns(a: Tensor, quota: Tensor) -> Pairs:
    """The ``quota[f]`` largest strictly positive entries of every column, ties to the earlier row.

    Args:
        a: [n, F], finite.
        quota: [F] int64; values above n mean all.

    Returns:
        Pairs in canonical order: by row, then by feature.
    """
    quota = quota.clamp(0, len(a))
    pairs = entries_above(a, column_floor(a, quota))
    values = a[pairs.rows, pairs.features]
    if kernels.on_card(a):
        from .kernels.largest import keep_largest

        by_column = group_by(pairs.features, a.shape[1])  # stable: the rows of a column ascend
        keep = torch.empty_like(values, dtype=torch.bool)
        keep[by_column.order] = keep_largest(values[by_column.order], by_column.offsets, quota)
        return pairs.take(keep)
    rank = _rank_in_columns(pairs, values, a.shape[1])
    return pairs.take(rank < quota[pairs.features])


def column_floor(a: Tensor, quota: Tensor) -> Tensor:
    """For each column a bound [F] >= 0 with at least ``quota [F]`` entries above it, if so many are positive.

    The m-th largest of the maxima of disjoint groups of rows is at most the m-th largest entry, and close to it
    with 2 m groups. So small quotas look at few groups, larger ones at more, and the largest at the rows.
    """
    n, n_features = a.shape
    tiers = _tiers(quota, n)
    floor = a.new_full((n_features,), torch.inf)
    heads, deepest = a, n
    for groups, shallower in zip([n, *tiers], [*(g // 2 for g in tiers), 0], strict=True):
        if groups < n:
            heads = _group_maxima(heads, groups)
        columns = ((quota > shallower) & (quota <= deepest)).nonzero().squeeze(1)
        deepest = shallower
        if len(columns):
            m = quota[columns]
            top = heads.T[columns].topk(int(m.max()), dim=1).values
            floor[columns] = top.gather(1, m[:, None] - 1).squeeze(1)
    # One step down, so that "strictly above" keeps the last entry and its ties.
    return torch.nextafter(floor, floor.new_tensor(-torch.inf)).clamp(min=0)


def _tiers(quota: Tensor, n: int) -> list[int]:
    """Numbers of groups, falling, that leave few columns with quotas above half of the largest."""
    tiers: list[int] = []
    groups = _GROUPS
    while 4 * groups <= n:
        tiers.insert(0, groups)
        if int((quota > groups // 2).sum()) <= _FEW * len(quota):
            break
        groups *= _FINER
    return tiers


def _group_maxima(a: Tensor, groups: int) -> Tensor:
    """[groups, F] maxima of the rows g, g + groups, ...: neighbours, often alike, fall into different groups."""
    span = len(a) // groups
    maxima: Tensor = a[: span * groups].unflatten(0, (span, groups)).amax(0)
    return maxima


def _rank_in_columns(pairs: Pairs, values: Tensor, n_features: int) -> Tensor:
    """[nnz] int64: the rank of each entry in its column by falling value, ties towards the earlier row."""
    order = values.sort(descending=True, stable=True).indices
    order = order[pairs.features[order].sort(stable=True).indices]  # by column, then by falling value
    counts = torch.bincount(pairs.features, minlength=n_features)
    starts = counts.cumsum(0) - counts
    places = torch.arange(len(order), device=order.device) - starts[pairs.features[order]]
    return torch.empty_like(order).scatter_(0, order, places)
