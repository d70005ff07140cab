"""Where to cut a list of values so that rounding cannot move the cut: between two of them."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDE = 2.0**-22
"""Of the cut: the narrowest gap that a float32 number lies inside of, with room for one rounding more."""


def between(falling: Tensor, m: int) -> float:
    """What the first ``m`` of ``falling`` exceed and the others do not, as nearly as float32 values tell.

    0 where there are no more than ``m``.
    """
    if len(falling) <= m:
        return 0.0
    if m == 0:
        return float(falling[0]) * (1 + 2.0**-10)  # nothing exceeds it, however it is rounded
    return float(falling[m - 1 : m + 1].double().mean())


def widest_near(near: Tensor, about: float, reach: float, above: int, m: int) -> tuple[float, int]:
    """A float32 number inside a gap between exact values, and how many of all values exceed it.

    It is the gap that leaves a number nearest to ``m`` above it; of two, the higher one.

    Args:
        near: [w] float64, all values within ``reach`` of ``about``, in any order.
        above: how many values lie beyond ``about + reach``.
    """
    falling = near.sort(descending=True).values
    ends = falling.new_tensor([about + reach]), falling.new_tensor([about - reach])
    bounds = torch.cat([ends[0], falling, ends[1]])
    upper, lower = bounds[:-1], bounds[1:]
    middle = ((upper + lower) / 2).float().double()
    usable = (lower < middle) & (middle < upper) & (upper - lower > _WIDE * about)
    counts = above + torch.arange(len(middle), device=middle.device)
    if not bool(usable.any()):
        return about, above + int((falling > about).sum())
    best = (counts - m).abs().masked_fill(~usable, torch.iinfo(counts.dtype).max).argmin()
    return float(middle[best]), int(counts[best])
