"""The threshold of the soft top-k: the one b per row at which the weights sum to k, exact at any temperature.

An entry above b weighs at least 1/2, so at most 2k entries lie above b, and b is not below the 2k-th largest.
Every entry up to that one is below b and adds e^t / 2, whatever b turns out to be: one sum replaces them all. It
is taken over the entries that lie near, if those are few, else over whole rows in cache. The entries above are
sorted, b's place among them is found by bisection, and b follows from a quadratic equation. Rows with k > F/2 are
solved upside down: p(a, k) = 1 - p(-a, F - k).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..above import Pairs, entries_above
from ..select import kth_bound
from .card import threshold_on_card
from .solve import Tail, Threshold, exp_, solve_sorted

_CHUNK_BYTES = 1 << 22  # what the streaming passes work on at a time: it stays in cache
# Entries that are sorted and bisected at a time: below torch's grain an operation stays on the calling thread,
# and at this size a second one that has to be woken up first is no gain.
_BLOCK = (1 << 15) - 1
_FEW = 1 / 32  # share of the entries up to which handling them one by one is cheaper than whole rows
_SAMPLE = 16  # rows that are looked at to find out


class Near(NamedTuple):
    """Entries with a large enough t, in canonical order, with their t [nnz] in float64.

    ``complete``: of all entries that are left out, the weights sum to less than a rounding error, and so do their
    shares in the gradients.
    """

    pairs: Pairs
    t: Tensor
    complete: bool


def row_chunks(a: Tensor) -> Iterator[slice]:
    """The rows of ``a [n, F]`` in pieces that stay in cache."""
    step = max(_CHUNK_BYTES // max(a.shape[1] * a.element_size(), 1), 1) if a.device.type == "cpu" else len(a)
    return (slice(start, start + step) for start in range(0, len(a), step))


def find_threshold(
    a: Tensor, k: Tensor, alpha: float, *, lowest_t: float | None = None, relu: bool = False, moment: bool = False
) -> tuple[Threshold, Near]:
    """The threshold of every row, and its near entries.

    Args:
        a: [n, F], finite, contiguous, n and F at least 1; only read.
        k: [n] float64, 0 <= k <= F.
        alpha: temperature > 0.
        lowest_t: entries with at least this t are near, at most 0; None for all that count if those are few, and
            0 if they are not.
        relu: ``a`` stands for ReLU(a); only entries above zero are near.
        moment: whether ``mean_t`` is needed.
    """
    many = k > a.shape[1] / 2
    if kernels.on_card(a):
        found = threshold_on_card(a, k, alpha, relu=relu, moment=moment)
    elif many.any():
        found = _solve_mixed(a, k, alpha, many, relu, moment)
    else:
        return _solve(a, k, alpha, lowest_t, relu, moment)
    b = (found.pivot + alpha * (found.shift + (lowest_t or 0.0)))[:, None].to(a.dtype)
    pairs = entries_above(a, _lowered(b, 0.0, relu))
    t = found.distances(pairs.of(a), pairs.rows, alpha)
    keep = t >= (lowest_t or 0.0)
    return found, Near(pairs.take(keep), t[keep], False)


def _solve_mixed(a: Tensor, k: Tensor, alpha: float, many: Tensor, relu: bool, moment: bool) -> Threshold:
    """Rows with few and with many of their entries above b, on copies."""
    pivot, shift, log_sum, mean_t = (torch.zeros_like(k) for _ in range(4))
    for sign, rows in ((1.0, (~many).nonzero()[:, 0]), (-1.0, many.nonzero()[:, 0])):
        if len(rows) == 0:
            continue
        part = sign * (a[rows].relu() if relu else a[rows])
        few = k[rows] if sign > 0 else a.shape[1] - k[rows]
        found, _ = _solve(part, few, alpha, None, False, moment)
        pivot[rows], shift[rows], log_sum[rows] = sign * found.pivot, sign * found.shift, found.log_sum
        if found.mean_t is not None:
            mean_t[rows] = sign * found.mean_t
    log_sum.masked_fill_(k == a.shape[1], torch.inf)
    return Threshold(pivot, shift, log_sum, mean_t if moment else None)


def _solve(
    a: Tensor, k: Tensor, alpha: float, lowest_t: float | None, relu: bool, moment: bool
) -> tuple[Threshold, Near]:
    """The threshold and the near entries of rows with k <= F/2."""
    bound = kth_bound(a, (2 * k).ceil().long())
    bound = bound.clamp(min=0) if relu else bound
    matters = -math.log(a.shape[1] / torch.finfo(a.dtype).eps)  # u from which all e^u together are an epsilon
    complete = _are_few_between(a, _lowered(bound, alpha * matters, relu), bound)
    reach = min(lowest_t or 0.0, matters if complete else 0.0)
    pairs = entries_above(a, _lowered(bound, alpha * reach, relu) if reach < 0 else bound)
    values = pairs.of(a)
    above = values > bound[:, 0].index_select(0, pairs.rows)
    places = above.nonzero()[:, 0]
    rows_above, values_above = pairs.rows.index_select(0, places), values.index_select(0, places)
    counts = torch.bincount(rows_above, minlength=len(a))
    if complete:
        tail = _tail_of_pairs(a, bound, pairs.rows, values, counts, alpha, relu, moment)
    else:
        tail = _tail_of_rows(a, bound, counts, alpha, relu, moment)
    found = _solve_ragged(values_above, rows_above, counts, tail, k, alpha)
    t = found.distances(values, pairs.rows, alpha)
    if lowest_t is None and complete:
        # Of what matters to a gradient: where a gap is wide all densities are small, and it counts their shares.
        lowest = matters - (found.shift.abs() - found.log_sum).clamp(min=0)
        keep = t >= lowest.index_select(0, pairs.rows)
    else:
        keep = t >= (lowest_t or 0.0)
    return found, Near(pairs.take(keep), t[keep], complete)


def _lowered(bound: Tensor, by: float, relu: bool) -> Tensor:
    """A level under ``bound + by``; never under zero where entries below zero stand for zero."""
    level = torch.nextafter(bound + by, bound.new_tensor(-torch.inf))
    return level.clamp(min=0) if relu else level


def _are_few_between(a: Tensor, level: Tensor, bound: Tensor) -> bool:
    """Whether a small share of the entries lies between two levels [n, 1], judged by some of the rows."""
    some = slice(None, None, max(len(a) // _SAMPLE, 1))
    return bool(((a[some] > level[some]) & (a[some] <= bound[some])).float().mean() <= _FEW)


def _tail_of_pairs(
    a: Tensor, bound: Tensor, rows: Tensor, values: Tensor, counts: Tensor, alpha: float, relu: bool, moment: bool
) -> Tail:
    """The tail's sums from ``values [nnz]`` in ``rows``, which are all that matter and ``counts [n]`` above."""
    level = bound[:, 0].double()
    u = ((values.double() - level.index_select(0, rows)) / alpha).clamp_(max=0)
    e = exp_(u.clone())
    mass = torch.zeros_like(level).index_add_(0, rows, e) - counts
    first = torch.zeros_like(level).index_add_(0, rows, u * e)
    if relu:
        zeros = a.shape[1] - torch.bincount(rows, minlength=len(a))
        mass += zeros * (-level / alpha).exp()
        first += zeros * (-level / alpha) * (-level / alpha).exp()
    return Tail(level, mass, first if moment else None)


def _tail_of_rows(a: Tensor, bound: Tensor, counts: Tensor, alpha: float, relu: bool, moment: bool) -> Tail:
    """The tail's sums in one pass over all entries; ``counts [n]`` of them are above the bound."""
    mass = torch.empty(len(a), dtype=torch.float64, device=a.device)
    first = torch.empty_like(mass) if moment else None
    parts = list(row_chunks(a))
    buffer = torch.empty_like(a[parts[0]])
    for part in parts:
        level = bound[part]
        u = torch.minimum(a[part], level, out=buffer[: len(level)])
        if relu:
            u.clamp_(min=0)
        u.sub_(level).mul_(1 / alpha)
        e = exp_(u.clone() if moment else u)
        # In float64, so that taking off the ones that stand for entries above the bound leaves no error.
        torch.sum(e, 1, dtype=torch.float64, out=mass[part])
        if first is not None:
            first[part] = torch.linalg.vecdot(u, e)
    return Tail(bound[:, 0].double(), mass - counts, first)


def _solve_ragged(values: Tensor, rows: Tensor, counts: Tensor, tail: Tail, k: Tensor, alpha: float) -> Threshold:
    """The threshold from the entries above the bound: ``values [nnz]`` in ``rows``, ``counts [n]`` per row."""
    starts = counts.cumsum(0) - counts
    width = int(counts.max())
    step = max(_BLOCK // (width + 1), 1)
    parts = []
    for first in range(0, len(counts), step):
        block = slice(first, first + step)
        begin, n = int(starts[first]), len(counts[block])
        mine = slice(begin, begin + int(counts[block].sum()))
        slots = torch.arange(begin, mine.stop, device=values.device) - starts.index_select(0, rows[mine])
        padded = values.new_full((n, width + 1), -torch.inf)  # minus infinity weighs nothing
        padded[rows[mine] - first, slots] = values[mine]
        c = padded.sort(dim=1, descending=True).values
        parts.append(solve_sorted(c, counts[block], tail.rows(block), k[block], alpha))
    pivot, shift, log_sum = (torch.cat([part[i] for part in parts]) for i in range(3))  # type: ignore[misc]
    moments = [part.mean_t for part in parts if part.mean_t is not None]
    return Threshold(pivot, shift, log_sum, torch.cat(moments) if moments else None)
