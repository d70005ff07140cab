"""The threshold of one block of rows, from the few entries that may lie above it and the sum of all others."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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

    def rows(self, part: slice) -> Threshold:
        """The threshold of some of the rows."""
        mean_t = None if self.mean_t is None else self.mean_t[part]
        return Threshold(self.pivot[part], self.shift[part], self.log_sum[part], mean_t)

    def distances(self, values: Tensor, rows: Tensor, alpha: float) -> Tensor:
        """t [nnz] float64 of ``values [nnz]``, which stand in ``rows``."""
        return (
            (values.double() - self.pivot.index_select(0, rows))
            .div_(alpha)
            .sub_(self.shift.index_select(0, rows))
        )

    def density(self) -> Tensor:
        """[n] float64: the sum over all entries of Phi'(t_f)."""
        return ((self.log_sum - self.shift.abs()).exp() / 2).masked_fill(self.log_sum.isinf(), 0.0)


class Tail(NamedTuple):
    """The entries up to ``bound``: with u = (a - bound) / alpha, the sums of e^u and of u e^u; [n] float64."""

    bound: Tensor
    mass: Tensor
    moment: Tensor | None

    def rows(self, part: slice) -> Tail:
        """The tail of some of the rows."""
        return Tail(self.bound[part], self.mass[part], None if self.moment is None else self.moment[part])


def exp_(t: Tensor) -> Tensor:
    """e^t in place, exactly zero where it underflows: the exponential is twelve times slower there."""
    least = math.ceil(math.log(torch.finfo(t.dtype).tiny))
    t.clamp_(min=least).exp_()
    return F.threshold(t, 1.1 * math.exp(least), 0.0, inplace=True)


def laplace_cdf(t: Tensor) -> Tensor:
    """Phi(t), without loss of small values."""
    half = exp_(-t.abs()) / 2
    return torch.where(t < 0, half, 1 - half)


def solve_sorted(c: Tensor, counts: Tensor, tail: Tail, k: Tensor, alpha: float) -> Threshold:
    """The threshold of rows with k <= F/2.

    Args:
        c: [n, W + 1], the entries above the tail's bound, falling; then minus infinity.
        counts: [n] int64, how many of them there are, at most W.
        tail: all other entries.
        k: [n] float64.
        alpha: temperature.
    """
    above = _count_above(c, counts, tail, k, alpha)
    c = c.double()
    lower = torch.where(above < counts, c.gather(1, above[:, None])[:, 0], tail.bound)
    upper = torch.where(above > 0, c.gather(1, (above - 1).clamp(min=0)[:, None])[:, 0], torch.inf)

    is_above = torch.arange(c.shape[1], device=c.device) < above[:, None]
    reference = torch.where(is_above, upper[:, None], lower[:, None])
    sums = exp_(-(c - reference).abs() / alpha)
    p = sums.masked_fill(~is_above, 0).sum(1)
    q = sums.masked_fill(is_above, 0).sum(1) + tail.mass * ((tail.bound - lower) / alpha).exp()
    found, _, _ = solve_between(lower, upper, above, p, q, k, alpha)
    return found if tail.moment is None else found._replace(mean_t=_mean_t(c, found, tail, alpha))


def solve_between(
    lower: Tensor, upper: Tensor, above: Tensor, p: Tensor, q: Tensor, k: Tensor, alpha: float
) -> tuple[Threshold, Tensor, Tensor]:
    """The threshold b between two entries side by side, and y = (b - lower) / alpha, z = (upper - b) / alpha.

    Args:
        lower, upper: [n] float64, infinite where there is no such entry.
        above: [n], how many entries are ``upper`` or larger.
        p: [n] float64, the sum over them of e^-|a - upper| / alpha; q: that over all others, about ``lower``.
        k: [n] float64, 0 <= k <= F.
        alpha: temperature.
    """
    # above - k - p e^-z / 2 + q e^-y / 2 = 0, and y + z = gap.
    gap, excess = (upper - lower) / alpha, above - k
    log_p, log_q = p.log(), q.log()
    log_excess = excess.abs().log().masked_fill((excess == 0) & gap.isinf(), _LOG_ZERO)
    log_root = torch.logaddexp(log_excess, torch.logaddexp(2 * log_excess, log_p + log_q - gap) / 2)
    from_below = (log_q - log_root).clamp(min=0)
    from_above = (log_p - log_root).clamp(min=0)
    is_low = (excess <= 0) & (lower > -torch.inf)
    y = torch.where(is_low, from_below, gap - from_above)
    z = torch.where(is_low, gap - from_below, from_above)

    pivot, shift = torch.where(z < y, upper, lower), torch.where(z < y, -z, y)
    log_sum = torch.logaddexp(log_p - z, log_q - y) + shift.abs()
    return Threshold(pivot, shift, log_sum, None), y, z


def _count_above(c: Tensor, counts: Tensor, tail: Tail, k: Tensor, alpha: float) -> Tensor:
    """[n]: how many entries lie above b, by bisection: the first entry at which the weights sum to k or more."""
    low, high = torch.zeros_like(counts), counts
    for _ in range(c.shape[1].bit_length()):
        middle = (low + high) // 2
        level = torch.where(middle < counts, c.gather(1, middle[:, None])[:, 0], tail.bound.to(c.dtype))
        in_tail = tail.mass * ((tail.bound - level) / alpha).exp() / 2
        enough = _sum_of_weights((c - level[:, None]).div_(alpha)) + in_tail >= k
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
        low = torch.minimum(low, high)
    return high


def _sum_of_weights(t: Tensor) -> Tensor:
    """[n] float64: the sum of Phi(t) of every row of ``t [n, W]``."""
    distance = t.abs().neg_()
    signed = torch.copysign(1 - exp_(distance), t)  # Phi(t) = (1 + signed) / 2, in a fifth of the time of where
    return (t.shape[1] + signed.sum(1, dtype=torch.float64)) / 2


def _mean_t(c: Tensor, found: Threshold, tail: Tail, alpha: float) -> Tensor:
    assert tail.moment is not None
    t = (c - found.pivot[:, None]) / alpha - found.shift[:, None]
    weights = exp_(found.shift.abs()[:, None] - t.abs())
    drop = (tail.bound - found.pivot) / alpha - found.shift
    in_tail = (found.shift.abs() + drop).exp() * (tail.moment + drop * tail.mass)
    return ((weights * t.nan_to_num(neginf=0.0)).sum(1) + in_tail) / found.log_sum.exp()
