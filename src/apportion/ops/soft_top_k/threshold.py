"""The threshold of the soft top-k: the one b per row at which the weights sum to k, exact at any temperature.

An entry above b weighs at least 1/2, so at most 2k entries lie above b, and b is not below the 2k-th largest.
Every entry up to that one is below b and adds e^t / 2, whatever b turns out to be: one streaming sum replaces
them all. The few above it are sorted, b's place among them is found by bisection, and b follows from a quadratic
equation. Rows with k > F/2 are solved upside down: p(a, k) = 1 - p(-a, F - k).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..select import Pairs, entries_above, kth_bound

_CHUNK_BYTES = 1 << 22  # what the streaming passes work on at a time: it stays in cache
_BLOCK = 1 << 20  # entries that are sorted and bisected at a time
_LOG_ZERO = -800.0  # stands for ln 0 where k = 0 would put b infinitely high: e^-800 is zero in float64


class Threshold(NamedTuple):
    """b = pivot + alpha * shift per row: near an entry an absolute b would not be exact enough.

    Attributes:
        pivot: [n], float64, the entry of the row that is nearest to b.
        shift: [n], float64.
        log_sum: [n], float64: ln of the sum over all entries of exp(|shift| - |t_f|), t_f = (a_f - b) / alpha;
            infinite at k = F, where no gradient flows.
        mean_t: [n], float64: the mean of t_f weighted by exp(-|t_f|), or None if it was not asked for.
    """

    pivot: Tensor
    shift: Tensor
    log_sum: Tensor
    mean_t: Tensor | None

    def distances(self, values: Tensor, rows: Tensor, alpha: float) -> Tensor:
        """t [nnz] float64 of ``values [nnz]``, which stand in ``rows``."""
        return (values.double() - self.pivot[rows]) / alpha - self.shift[rows]

    def rows(self, part: slice) -> Threshold:
        """The threshold of some of the rows."""
        mean_t = None if self.mean_t is None else self.mean_t[part]
        return Threshold(self.pivot[part], self.shift[part], self.log_sum[part], mean_t)

    def density(self) -> Tensor:
        """[n] float64: the sum over all entries of Phi'(t_f)."""
        return ((self.log_sum - self.shift.abs()).exp() / 2).masked_fill(self.log_sum.isinf(), 0.0)


class Near(NamedTuple):
    """Entries from some t upwards, in canonical order, with their t [nnz] in float64."""

    pairs: Pairs
    t: Tensor


def row_chunks(a: Tensor) -> Iterator[slice]:
    """The rows of ``a [n, F]`` in pieces that stay in cache."""
    step = max(_CHUNK_BYTES // max(a.shape[1] * a.element_size(), 1), 1) if a.device.type == "cpu" else len(a)
    return (slice(start, start + step) for start in range(0, len(a), step))


def find_threshold(
    a: Tensor, k: Tensor, alpha: float, *, lowest_t: float = 0.0, relu: bool = False, moment: bool = False
) -> tuple[Threshold, Near]:
    """The threshold of every row, and the entries with t >= ``lowest_t``.

    Args:
        a: [n, F], finite, n and F at least 1; only read.
        k: [n] float64, 0 <= k <= F.
        alpha: temperature > 0.
        lowest_t: at most 0.
        relu: ``a`` stands for ReLU(a); only entries above zero are returned.
        moment: whether ``mean_t`` is needed.
    """
    many = k > a.shape[1] / 2
    if not many.any():
        bound = _bound(a, k, relu)
        pairs = entries_above(a, _reach(bound, alpha * lowest_t, relu))
        found = _solve(a, k, alpha, bound, pairs, relu, moment)
    else:
        found = _solve_mixed(a, k, alpha, many, relu, moment)
        b = found.pivot + alpha * (found.shift + lowest_t)
        below = torch.nextafter(b.to(a.dtype), b.new_tensor(-torch.inf, dtype=a.dtype))
        pairs = entries_above(a, _reach(below[:, None], 0.0, relu))
    t = found.distances(a[pairs.rows, pairs.features], pairs.rows, alpha)
    keep = t >= lowest_t
    return found, Near(pairs.take(keep), t[keep])


def _bound(a: Tensor, k: Tensor, relu: bool) -> Tensor:
    """[n, 1]: an entry of each row that is not above its 2k-th largest."""
    bound = kth_bound(a, (2 * k).ceil().long())
    return bound.clamp(min=0) if relu else bound


def _reach(bound: Tensor, by: float, relu: bool) -> Tensor:
    """``bound`` moved by so much, but not below zero where entries below zero stand for zero."""
    return (bound + by).clamp(min=0) if relu else bound + by


def _solve_mixed(a: Tensor, k: Tensor, alpha: float, many: Tensor, relu: bool, moment: bool) -> Threshold:
    """Rows with few and with many of their entries above b, on copies."""
    n = len(a)
    pivot, shift, log_sum, mean_t = (torch.zeros(n, dtype=torch.float64, device=a.device) for _ in range(4))
    for sign, rows in ((1.0, (~many).nonzero()[:, 0]), (-1.0, many.nonzero()[:, 0])):
        if len(rows) == 0:
            continue
        part = sign * (a[rows].relu() if relu else a[rows])
        few = k[rows] if sign > 0 else a.shape[1] - k[rows]
        bound = _bound(part, few, relu=False)
        found = _solve(part, few, alpha, bound, entries_above(part, bound), False, moment)
        pivot[rows], shift[rows], log_sum[rows] = sign * found.pivot, sign * found.shift, found.log_sum
        if found.mean_t is not None:
            mean_t[rows] = sign * found.mean_t
    log_sum.masked_fill_(k == a.shape[1], torch.inf)
    return Threshold(pivot, shift, log_sum, mean_t if moment else None)


class _Tail(NamedTuple):
    """The entries up to ``bound``: with u = (a - bound) / alpha, the sums of e^u and of u e^u; [n] float64."""

    bound: Tensor
    mass: Tensor
    moment: Tensor | None


def _solve(
    a: Tensor, k: Tensor, alpha: float, bound: Tensor, pairs: Pairs, relu: bool, moment: bool
) -> Threshold:
    """The threshold of rows with k <= F/2, given pairs that include all entries above the bound."""
    values = a[pairs.rows, pairs.features]
    above = values > bound[pairs.rows, 0]
    rows, values = pairs.rows[above], values[above]
    counts = torch.bincount(rows, minlength=len(a))
    tail = _stream(a, bound, counts, alpha, relu, moment)
    starts = counts.cumsum(0) - counts
    width = int(counts.max())
    step = max(_BLOCK // (width + 1), 1)
    parts = []
    for first in range(0, len(a), step):
        block = slice(first, first + step)
        n = len(counts[block])
        mine = slice(int(starts[first]), int(starts[first]) + int(counts[block].sum()))
        slots = torch.arange(mine.start, mine.stop, device=a.device) - starts[rows[mine]]
        # Places beyond a row's entries hold minus infinity, which weighs nothing.
        sorted_values = torch.full((n, width + 1), -torch.inf, dtype=torch.float64, device=a.device)
        sorted_values[rows[mine] - first, slots] = values[mine].double()
        sorted_values = sorted_values.sort(dim=1, descending=True).values
        part = _Tail(tail.bound[block], tail.mass[block], tail.moment[block] if tail.moment is not None else None)
        parts.append(_solve_sorted(sorted_values, counts[block], part, k[block], alpha))
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return Threshold(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def _stream(a: Tensor, bound: Tensor, counts: Tensor, alpha: float, relu: bool, moment: bool) -> _Tail:
    """The tail's sums in one pass; ``counts [n]`` entries are above the bound."""
    mass = torch.empty(len(a), dtype=torch.float64, device=a.device)
    first = torch.empty_like(mass) if moment else None
    parts = list(row_chunks(a))
    buffer = torch.empty_like(a[parts[0]])
    other = torch.empty_like(buffer) if moment else buffer
    for part in parts:
        floor = bound[part]
        u, e = buffer[: len(floor)], other[: len(floor)]
        torch.minimum(a[part], floor, out=u)
        if relu:
            u.clamp_(min=0)
        torch.exp(u.sub_(floor).mul_(1 / alpha), out=e)
        # In float64, so that taking off the ones that stand for entries above the bound leaves no error.
        torch.sum(e, 1, dtype=torch.float64, out=mass[part])
        if first is not None:
            first[part] = torch.linalg.vecdot(u, e)
    return _Tail(bound[:, 0].double(), mass - counts, first)


def _solve_sorted(c: Tensor, counts: Tensor, tail: _Tail, k: Tensor, alpha: float) -> Threshold:
    """The threshold from the falling entries ``c [n, W + 1]`` above the tail, ``counts [n]`` <= W of each row."""
    above = _count_above(c, counts, tail, k, alpha)
    lower = torch.where(above < counts, c.gather(1, above[:, None])[:, 0], tail.bound)
    upper = torch.where(above > 0, c.gather(1, (above - 1).clamp(min=0)[:, None])[:, 0], torch.inf)
    gap = (upper - lower) / alpha

    # With b = lower + alpha y = upper - alpha z and y + z = gap:  above - k - P e^-z / 2 + Q e^-y / 2 = 0.
    is_above = torch.arange(c.shape[1], device=c.device) < above[:, None]
    reference = torch.where(is_above, upper[:, None], lower[:, None])
    sums = torch.exp(-(c - reference).abs() / alpha)
    log_p = sums.masked_fill(~is_above, 0).sum(1).log()
    log_q = (sums.masked_fill(is_above, 0).sum(1) + tail.mass * ((tail.bound - lower) / alpha).exp()).log()
    excess = above - k
    log_excess = excess.abs().log().masked_fill(k == 0, _LOG_ZERO)
    log_root = torch.logaddexp(log_excess, torch.logaddexp(2 * log_excess, log_p + log_q - gap) / 2)
    from_below = (log_q - log_root).clamp(min=0)
    from_above = (log_p - log_root).clamp(min=0)
    y = torch.where(excess <= 0, from_below, gap - from_above)
    z = torch.where(excess <= 0, gap - from_below, from_above)

    pivot, shift = torch.where(z < y, upper, lower), torch.where(z < y, -z, y)
    log_sum = torch.logaddexp(log_p - z, log_q - y) + shift.abs()
    if tail.moment is None:
        return Threshold(pivot, shift, log_sum, None)
    t = (c - pivot[:, None]) / alpha - shift[:, None]
    weights = (shift.abs()[:, None] - t.abs()).exp()
    drop = (tail.bound - pivot) / alpha - shift
    total = (weights * t.nan_to_num(neginf=0.0)).sum(1)
    total = total + (shift.abs() + drop).exp() * (tail.moment + drop * tail.mass)
    return Threshold(pivot, shift, log_sum, total / log_sum.exp())


def _count_above(c: Tensor, counts: Tensor, tail: _Tail, k: Tensor, alpha: float) -> Tensor:
    """[n]: how many entries lie above b, by bisection: the first entry at which the weights sum to k or more."""
    low, high = torch.zeros_like(counts), counts
    for _ in range(math.ceil(math.log2(c.shape[1])) + 1):
        middle = (low + high) // 2
        level = torch.where(middle < counts, c.gather(1, middle[:, None])[:, 0], tail.bound)
        t = (c - level[:, None]) / alpha
        half = (-t.abs()).exp() / 2
        mass = torch.where(t >= 0, 1 - half, half).sum(1) + tail.mass * ((tail.bound - level) / alpha).exp() / 2
        enough = mass >= k
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
        low = torch.minimum(low, high)
    return high
