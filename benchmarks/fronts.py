"""Fronts: what a method leaves unexplained at every L0 it was measured at."""

from __future__ import annotations

import math
from itertools import pairwise

Front = dict[float, tuple[float, float]]
"""Measured L0 and FVU of one method on one source with one seed, by k."""


def at_l0(front: Front, l0: float) -> float | None:
    """FVU between two points of a front, a straight line in the logarithms of both; None outside of it."""
    for own, fvu in front.values():
        if own == l0:
            return fvu
    for (low, above), (high, below) in pairwise(sorted(front.values())):
        if low < l0 < high:
            share = math.log(l0 / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(above) + share * math.log(below))
    return None
