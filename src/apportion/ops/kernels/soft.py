"""The soft top-k: the place of each row's threshold, the weights of entries, and what these give their gradients.

The place is guessed from the maxima of groups of columns, which a program holds, and one read of the row says on
which side of the guess the threshold lies, until it is known to lie between two entries side by side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024  # of a row that a program has under way at a time
_ENTRIES = 256, 1024  # of a ragged row, fewest and most
_GROUPS = 1024, 4096  # fewest and most groups of a row whose maxima are held
_HALVINGS = 24  # of all floats: to 8 of the 23 bits behind the point of a float32 or better, enough for a guess
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
_ORDERS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"FLOAT": tl.float32, "INTEGER": tl.int32, "TOP": 31, "FAR": torch.finfo(torch.float32).max},
    torch.float64: {"FLOAT": tl.float64, "INTEGER": tl.int64, "TOP": 63, "FAR": torch.finfo(torch.float64).max},
}


class Places(NamedTuple):
    """The gap between two entries of a row in which its threshold lies, [n] float64 each; u = (a - b) / alpha.

    Attributes:
        lower: the entry below, minus infinity where there is none.
        upper: the entry above, infinity where there is none.
        above: how many entries are at least ``upper``.
        p: the sum over these of e^-u with b = ``upper``; q: that of e^u over all others with b = ``lower``.
        p_moment, q_moment: the same of u e^-u and u e^u; zero if they were not asked for.
    """

    lower: Tensor
    upper: Tensor
    above: Tensor
    p: Tensor
    q: Tensor
    p_moment: Tensor
    q_moment: Tensor


@triton.jit
def _flip(bits, TOP: tl.constexpr):
    """The bits of floats as integers in the order of the floats, and back."""
    return bits ^ ((bits >> TOP) & ((1 << TOP) - 1))


@triton.jit
def _entries(line, at, d, RELU: tl.constexpr, FLOAT: tl.constexpr):
    """Entries of a row, minus infinity beyond its end."""
    value = tl.load(line + at, mask=at < d, other=0).to(FLOAT)
    if RELU:
        value = tl.maximum(value, 0)
    return tl.where(at < d, value, float("-inf"))


@triton.jit
def _weight(t):
    """The Laplace distribution function, without loss of small values."""
    half = tl.exp(-tl.abs(t)) / 2
    return tl.where(t < 0, half, 1 - half)


@triton.jit
def _apart(a, b, rate):
    """How many alphas lie between; what is further apart adds nothing, and infinity times zero would be NaN."""
    return tl.minimum(tl.abs(a - b) * rate, 1000.0)


@triton.jit
def _guess(maxima, share, rate, low, high, FLOAT: tl.constexpr, TOP: tl.constexpr, HALVINGS: tl.constexpr):
    """About the highest level, from low to below high, at which the weights of the maxima sum to a share."""
    for _ in range(HALVINGS):
        middle = (low & high) + ((low ^ high) >> 1)  # half their sum, which may overflow
        level = _flip(middle, TOP).to(FLOAT, bitcast=True)
        enough = tl.sum(_weight((maxima - level) * rate), axis=0) >= share
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    return low


@triton.jit
def _look(
    line,
    level,
    rate,
    d,
    RELU: tl.constexpr,
    FLOAT: tl.constexpr,
    FAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One read of a row: the entries on either side of a level, how many are above, and both sides' sums."""
    count = tl.zeros([BLOCK], tl.int32)
    p, q = tl.zeros([BLOCK], FLOAT), tl.zeros([BLOCK], FLOAT)
    upper, lower = tl.full([BLOCK], FAR, FLOAT), tl.full([BLOCK], -FAR, FLOAT)
    for first in range(0, d, BLOCK):
        value = _entries(line, first + tl.arange(0, BLOCK), d, RELU, FLOAT)
        above = value > level
        # Each sum refers to the nearest entry so far: about the level itself both could underflow.
        nearer_upper = tl.where(above, tl.minimum(upper, value), upper)
        nearer_lower = tl.where(above, lower, tl.maximum(lower, value))
        e = tl.exp(-_apart(value, tl.where(above, nearer_upper, nearer_lower), rate))
        p = p * tl.exp(-_apart(upper, nearer_upper, rate)) + tl.where(above, e, 0)
        q = q * tl.exp(-_apart(lower, nearer_lower, rate)) + tl.where(above, 0, e)
        upper, lower = nearer_upper, nearer_lower
        count += above.to(tl.int32)
    next_upper, next_lower = tl.min(upper, axis=0), tl.max(lower, axis=0)
    total_p = tl.sum(p * tl.exp(-_apart(upper, next_upper, rate)), axis=0)
    total_q = tl.sum(q * tl.exp(-_apart(lower, next_lower, rate)), axis=0)
    return next_lower, next_upper, tl.sum(count, axis=0), total_p, total_q


@triton.jit
def _moments(line, lower, upper, rate, d, RELU: tl.constexpr, FLOAT: tl.constexpr, BLOCK: tl.constexpr):
    """One read of a row: the sums of u e^-|u| on either side of the gap."""
    p_moment, q_moment = tl.zeros([BLOCK], FLOAT), tl.zeros([BLOCK], FLOAT)
    for first in range(0, d, BLOCK):
        value = _entries(line, first + tl.arange(0, BLOCK), d, RELU, FLOAT)
        above = value > lower
        u = _apart(value, tl.where(above, upper, lower), rate)
        moment = u * tl.exp(-u)
        p_moment += tl.where(above, moment, 0)
        q_moment -= tl.where(above, 0, moment)
    return tl.sum(p_moment, axis=0), tl.sum(q_moment, axis=0)


@triton.jit
def _row_places(
    out,
    a,
    k,
    rate,
    n,
    d,
    stride,
    RELU: tl.constexpr,
    MOMENT: tl.constexpr,
    FLOAT: tl.constexpr,
    INTEGER: tl.constexpr,
    TOP: tl.constexpr,
    FAR: tl.constexpr,
    GROUPS: tl.constexpr,
    HALVINGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r: column r of the seven ``Places``."""
    row = tl.program_id(0).to(tl.int64)
    line = a + row * stride
    wanted = tl.load(k + row)
    rate = tl.load(rate)
    maxima = tl.full([GROUPS], float("-inf"), FLOAT)
    for first in range(0, d, GROUPS):
        maxima = tl.maximum(maxima, _entries(line, first + tl.arange(0, GROUPS), d, RELU, FLOAT))
    high = _flip(tl.max(maxima, axis=0).to(INTEGER, bitcast=True), TOP) + 1
    low = _flip(tl.full([], -FAR, FLOAT).to(INTEGER, bitcast=True), TOP)
    share = wanted.to(FLOAT)  # what the maxima alone would weigh in sum
    lower, upper = tl.full([], -FAR, FLOAT), tl.full([], FAR, FLOAT)
    count, p, q = tl.full([], 0, tl.int32), tl.full([], 0, FLOAT), tl.full([], 0, FLOAT)
    reads = 0
    while low < high:  # levels from low to below high may be in the gap
        if (reads < 3) | (reads % 2 == 0):
            trial = _guess(maxima, share, rate, low, high, FLOAT, TOP, HALVINGS)
        else:  # the maxima say too little: as many reads as a number has bits will do
            trial = (low & high) + ((low ^ high) >> 1)
        reads += 1
        level = _flip(trial, TOP).to(FLOAT, bitcast=True)
        lower, upper, count, p, q = _look(line, level, rate, d, RELU, FLOAT, FAR, BLOCK)
        across = tl.exp(-_apart(upper, lower, rate))
        excess = count - wanted
        sum_at_upper, sum_at_lower = excess + (q * across - p) / 2, excess + (q - p * across) / 2
        if (count > 0) & (sum_at_upper >= 0):
            low = tl.maximum(_flip(upper.to(INTEGER, bitcast=True), TOP), trial + 1)
            level, total = upper, sum_at_upper + wanted
        else:
            if (count < d) & (sum_at_lower < 0):
                high = tl.minimum(_flip(lower.to(INTEGER, bitcast=True), TOP), trial)
            else:
                high = low
            level, total = lower, sum_at_lower + wanted
        among_maxima = tl.sum(_weight((maxima - level) * rate), axis=0)
        share = (wanted * (among_maxima / total)).to(FLOAT)
    tl.store(out + row, tl.where(count < d, lower.to(tl.float64), float("-inf")))
    tl.store(out + n + row, tl.where(count > 0, upper.to(tl.float64), float("inf")))
    tl.store(out + 2 * n + row, count.to(tl.float64))
    tl.store(out + 3 * n + row, p.to(tl.float64))
    tl.store(out + 4 * n + row, q.to(tl.float64))
    if MOMENT:
        p_moment, q_moment = _moments(line, lower, upper, rate, d, RELU, FLOAT, BLOCK)
        tl.store(out + 5 * n + row, p_moment.to(tl.float64))
        tl.store(out + 6 * n + row, q_moment.to(tl.float64))


@triton.jit
def _distances(values, entry, stop, pivot, shift, alpha):
    """t of entries of a ragged row, in float64: near the threshold it is a small difference of large numbers."""
    value = tl.load(values + entry, mask=entry < stop, other=0).to(tl.float64)
    return (value - pivot) / alpha - shift


@triton.jit
def _weigh(out, values, offsets, pivot, shift, alpha, FLOAT: tl.constexpr, BLOCK: tl.constexpr):
    """Program r: the weights of the entries of ragged row r."""
    row = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    pivot, shift, alpha = tl.load(pivot + row), tl.load(shift + row), tl.load(alpha)
    for first in range(start, stop, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        t = _distances(values, entry, stop, pivot, shift, alpha).to(FLOAT)
        tl.store(out + entry, _weight(t).to(out.dtype.element_ty), mask=entry < stop)


@triton.jit
def _weigh_back(
    d_values,
    d_k,
    d_alpha,
    values,
    grad,
    offsets,
    pivot,
    shift,
    log_sum,
    mean_t,
    alpha,
    FLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r: what ``grad`` on the weights of ragged row r gives its entries, its k and alpha."""
    row = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    pivot, shift, alpha = tl.load(pivot + row), tl.load(shift + row), tl.load(alpha)
    log_most, mean_t = tl.abs(shift) - tl.load(log_sum + row), tl.load(mean_t + row)
    slope = tl.where(log_most > float("-inf"), tl.exp(-log_most) / 2 / alpha, 0)
    by_k, by_alpha = tl.zeros([BLOCK], FLOAT), tl.zeros([BLOCK], FLOAT)
    for first in range(start, stop, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        t = _distances(values, entry, stop, pivot, shift, alpha)
        given = tl.load(grad + entry, mask=entry < stop, other=0).to(FLOAT)
        weighted = tl.exp((log_most - tl.abs(t)).to(FLOAT)) * given
        by_k += weighted
        by_alpha += weighted * (mean_t - t).to(FLOAT)
    total = tl.sum(by_k, axis=0)
    tl.store(d_k + row, total.to(tl.float64))
    tl.store(d_alpha + row, tl.sum(by_alpha, axis=0) * slope)
    for first in range(start, stop, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        t = _distances(values, entry, stop, pivot, shift, alpha)
        given = tl.load(grad + entry, mask=entry < stop, other=0).to(FLOAT)
        share = tl.exp((log_most - tl.abs(t)).to(FLOAT))
        result = share * (given - total) * slope
        tl.store(d_values + entry, result.to(d_values.dtype.element_ty), mask=entry < stop)


def row_places(a: Tensor, k: Tensor, alpha: float, *, relu: bool, moment: bool) -> Places:
    """For each row the gap in which the threshold of its soft top-k lies.

    Args:
        a: [n, F], finite, n and F at least 1; the entries of a row lie together, rows may lie apart.
        k: [n] float64, 0 <= k <= F.
        alpha: temperature > 0.
        relu: ``a`` stands for ReLU(a).
        moment: whether the moments are needed.
    """
    n, d = a.shape
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    rate = min(max(1 / alpha, torch.finfo(wide).tiny), torch.finfo(wide).max)  # 0 times infinity would be NaN
    out = a.new_zeros(7, n, dtype=torch.float64)
    fewest, most = _GROUPS
    groups = min(
        triton.next_power_of_2(max(4 * math.ceil(float(k.max())), fewest)), most, triton.next_power_of_2(d)
    )
    blocks = {"GROUPS": groups, "HALVINGS": _HALVINGS, "BLOCK": min(int(triton.next_power_of_2(d)), _COLUMNS)}
    with torch.cuda.device_of(a):
        _row_places[(n,)](
            *(out, a, k.contiguous(), a.new_full((1,), rate, dtype=wide), n, d, a.stride(0)),
            RELU=relu,
            MOMENT=moment,
            **_ORDERS[wide],
            **blocks,
            **_OPTIONS,
        )
    return Places(*out)


def weigh(values: Tensor, offsets: Tensor, pivot: Tensor, shift: Tensor, alpha: float) -> Tensor:
    """The weight Phi((value - pivot) / alpha - shift) of every entry of a ragged list, [nnz] as ``values`` are.

    Args:
        values: [nnz]; bfloat16 and float16 are worked in float32.
        offsets: [r + 1] int64.
        pivot, shift: [r] float64.
        alpha: temperature > 0.
    """
    values = values.contiguous()
    out = torch.empty_like(values)
    with torch.cuda.device_of(values):
        _weigh[(len(pivot),)](
            *(out, values, offsets, pivot.contiguous(), shift.contiguous(), pivot.new_full((1,), alpha)),
            FLOAT=tl.float64 if values.dtype == torch.float64 else tl.float32,
            BLOCK=_block(len(values) // len(pivot)),
            **_OPTIONS,
        )
    return out


def weigh_back(
    values: Tensor,
    grad: Tensor,
    offsets: Tensor,
    pivot: Tensor,
    shift: Tensor,
    log_sum: Tensor,
    mean_t: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``grad [nnz]`` on the weights gives the values [nnz], and each row's k and alpha, [r] float64.

    ``log_sum`` and ``mean_t``, [r] float64, are those of a ``Threshold``; the rest is as ``weigh`` got it.
    """
    values, grad = values.contiguous(), grad.contiguous()
    d_values = torch.empty_like(values)
    d_k, d_alpha = torch.empty_like(pivot), torch.empty_like(pivot)
    rows = [t.contiguous() for t in (pivot, shift, log_sum, mean_t)]
    with torch.cuda.device_of(values):
        _weigh_back[(len(pivot),)](
            *(d_values, d_k, d_alpha, values, grad, offsets, *rows, pivot.new_full((1,), alpha)),
            FLOAT=tl.float64 if values.dtype == torch.float64 else tl.float32,
            BLOCK=_block(len(values) // len(pivot)),
            **_OPTIONS,
        )
    return d_values, d_k, d_alpha


def _block(entries: int) -> int:
    """Entries that a program has under way at a time, where a row has so many."""
    fewest, most = _ENTRIES
    return min(max(int(triton.next_power_of_2(max(entries, 1))), fewest), most)
