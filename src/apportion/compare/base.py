"""What a comparison holds."""

from __future__ import annotations

from dataclasses import dataclass

from ..metrics.intervals import Interval
from .origin import Seed


@dataclass(frozen=True)
class Measured:
    """One SAE.

    Attributes:
        name: as it was handed in.
        method: what it is an instance of.
        k: features per token that it is meant to spend.
        seed: of its weights and its stream.
        measures: the single numbers that ``apportion.evaluate`` gives; ``dead``, the share of features that
            were dead when training ended, and ``never_fired``, the share that had not fired in it at all; None
            for a number that is not known.
        caveats: what is wrong with it, a sentence each.
    """

    name: str
    method: str
    k: float
    seed: Seed
    measures: dict[str, float | None]
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """A method at one k: its measures, over seeds."""

    method: str
    k: float
    measures: dict[str, Interval]


@dataclass(frozen=True)
class Level:
    """A measure of a method at the L0 where all methods are read that have one near k in common.

    Attributes:
        l0: the mean over seeds of where it is read.
        read_from: names of the SAEs that it is read from.
    """

    method: str
    k: float
    l0: float
    measure: str
    value: Interval
    read_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A measure of ``method`` less that of ``reference`` at equal measured L0, paired by seed.

    Attributes:
        l0: the mean over seeds of where both are read.
        share: the difference as a share of the reference's measure; None where that is 0.
        excludes_zero: whether the interval does; None where there is no interval. Each is meant alone: of twenty
            differences of equal methods, one excludes zero.
        read_from: names of the SAEs that it is read from.
    """

    method: str
    reference: str
    k: float
    l0: float
    measure: str
    value: Interval
    share: float | None
    excludes_zero: bool | None
    read_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Methods beside one another.

    Attributes:
        tokens: held-out tokens that every SAE was measured on.
        documents: how many documents they come from; None where the source does not say.
        saes: one by one.
        points, levels, differences: what follows from them.
        left_out: SAEs that could not be measured fairly, and why.
        notes: what is missing from the tables, and why.
    """

    tokens: int
    documents: int | None
    saes: tuple[Measured, ...]
    points: tuple[Point, ...]
    levels: tuple[Level, ...]
    differences: tuple[Difference, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
