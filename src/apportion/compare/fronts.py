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
    places = read_between(front, l0)
    if not places:
        return None
    (low, first), (high, second) = front[places[0]], front[places[-1]]
    if len(places) == 1:
        return first
    share = math.log(l0 / low) / math.log(high / low)
    if logarithmic and first > 0 and second > 0:
        return math.exp((1 - share) * math.log(first) + share * math.log(second))
    return (1 - share) * first + share * second


def read_between(front: Front, l0: float) -> tuple[int, ...]:
    """The places in ``front`` of the point at ``l0``, or of its two neighbours; none outside of the front.

    >>> read_between([(8.0, 0.4), (16.0, 0.2), (32.0, 0.1)], 20.0)
    (1, 2)
    """
    for place, (own, _) in enumerate(front):
        if own == l0:
            return (place,)
    for place, ((low, _), (high, _)) in enumerate(pairwise(front)):
        if 0 < low < l0 < high:
            return place, place + 1
    return ()


def common_l0(k: float, fronts: Sequence[Front]) -> float | None:
    """The L0 nearest to ``k`` that all ``fronts`` reach; ``None`` if no L0 lies in all of them or there are none.

    Frozen rules meet k to a few percent, so that a front may end a little before it; the others are then read
    there.
    """
    if not fronts or not all(fronts):
        return None
    low, high = max(front[0][0] for front in fronts), min(front[-1][0] for front in fronts)
    return min(max(k, low), high) if low <= high else None


def reaches(front: Front, k: float) -> bool:
    """Whether ``front`` comes near ``k``, to a share ``NEAR`` of it."""
    nearest = common_l0(k, [front])
    return nearest is not None and abs(nearest - k) <= NEAR * k
