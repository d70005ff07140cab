"""A method's front: what it reaches at the L0 that was measured, and between two such points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

Front: TypeAlias = Sequence[tuple[float, float]]
"""Measured L0 and a measure of SAEs that differ in k only, by rising L0."""

NEAR = 0.1
"""A k counts as reached by a front that comes within this share of it."""


def at_l0(front: Front, l0: float, logarithmic: bool = True) -> float | None:
    """The measure at ``l0``: that of a point there is, else on the straight line between its two neighbours.

    The line is straight over log L0, and in the measure's logarithm too if ``logarithmic`` (FVU falls about as a
    power of L0) and both are positive. ``None`` outside of the front: nothing is extrapolated.

    >>> at_l0([(8.0, 0.4), (32.0, 0.1)], 16.0)
    0.2
    """
    for own, value in front:
        if own == l0:
            return value
    for (low, first), (high, second) in pairwise(front):
        if 0 < low < l0 < high:
            share = math.log(l0 / low) / math.log(high / low)
            if logarithmic and first > 0 and second > 0:
                return math.exp((1 - share) * math.log(first) + share * math.log(second))
            return (1 - share) * first + share * second
    return None


def common_l0(k: float, fronts: Sequence[Front]) -> float | None:
    """The L0 nearest to ``k`` that all ``fronts`` reach.

    Frozen rules meet k to a few percent, so that a front may end a little before it; the others are then read
    there. ``None`` if one of them ends farther than ``NEAR`` from k, or no L0 lies in all of them.
    """
    if not fronts or not all(reaches(front, k) for front in fronts):
        return None
    low, high = max(front[0][0] for front in fronts), min(front[-1][0] for front in fronts)
    return min(max(k, low), high) if low <= high else None


def reaches(front: Front, k: float) -> bool:
    """Whether ``front`` comes near ``k``."""
    if not front:
        return False
    nearest = min(max(k, front[0][0]), front[-1][0])
    return abs(nearest - k) <= NEAR * k
