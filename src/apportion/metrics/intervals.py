"""95 % intervals: Student's t over seeds, a cluster bootstrap over documents within one."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MOST_DEGREES = 1000
"""More degrees of freedom count as so many, which makes an interval at most 0.1 % too wide."""


@dataclass(frozen=True)
class Interval:
    """A mean, and how far its 95 % interval reaches to either side.

    Attributes:
        mean: over seeds; of a single seed, its value.
        half: half the width; None where no interval is defined.
        n: how many seeds or documents it is over.
        over: which of the two.
    """

    mean: float
    half: float | None
    n: int
    over: Literal["seeds", "documents"] = "seeds"

    @property
    def excludes_zero(self) -> bool | None:
        """Whether zero lies outside; None where no interval is defined."""
        return None if self.half is None else abs(self.mean) > self.half


@functools.cache
def student_95(degrees: int) -> float:
    """The two-sided 95 % point of Student's t.

    >>> round(student_95(2), 3)
    4.303
    """
    degrees = min(degrees, MOST_DEGREES)
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _share_within(middle, degrees) < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def _share_within(angle: float, degrees: int) -> float:
    """P(|t| ≤ √degrees · tan(angle)), in closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    odd = degrees % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= step / (step + 1) * math.cos(angle) ** 2
    within = math.sin(angle) * total
    return (angle + within) * 2 / math.pi if odd else within


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and interval of one value per seed: Student's t with n - 1 degrees of freedom, none for one seed."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, None, n)
    return Interval(mean, student_95(n - 1) * statistics.stdev(values) / math.sqrt(n), n)


def over_documents(value: float, redrawn: Sequence[float], documents: int) -> Interval:
    """A value and its interval from what it is on redrawn sets of documents.

    The bootstrap's standard deviation, with the divisor D - 1 of D documents, times the point of Student's t with
    D - 1 degrees of freedom: with few documents a percentile interval is too narrow.
    """
    deviation = statistics.stdev(redrawn) * math.sqrt(documents / (documents - 1))
    return Interval(value, student_95(documents - 1) * deviation, documents, "documents")


def redrawn_documents(documents: int, draws: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """How often each of so many ``documents`` occurs, [documents], when as many are drawn with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = random.integers(0, documents, documents)
        yield np.bincount(drawn, minlength=documents).astype(np.float64)


def redrawn_sums(sums: NDArray[Any], draws: int, seed: int = 0) -> NDArray[np.float64]:
    """[draws, m]: the sums over documents that are drawn with replacement, as many as there are.

    All columns see the same draws, so that what is paired stays paired.

    Args:
        sums: [documents, m] of each document.
    """
    return np.stack([times @ sums for times in redrawn_documents(len(sums), draws, seed)])
