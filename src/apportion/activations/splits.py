"""Which document belongs to which part, and the rows of a part as one gapless sequence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidConfig

Part = Literal["train", "calibrate", "evaluate"]
_PARTS: tuple[Part, ...] = ("calibrate", "evaluate", "train")

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def parts_of(ids: Sequence[str], heldout: float, seed: int) -> NDArray[np.int8]:
    """The part of every document: 0 calibrate, 1 evaluate, 2 train (see ``in_part``).

    Each id has its own number in [0, 1), a hash of it and ``seed``; the first half of the share ``heldout``
    goes to "calibrate", the second to "evaluate". So a document stays in its part whatever else is in the
    source.

    Raises: ``InvalidConfig`` unless 0 ≤ heldout < 1.
    """
    if not 0.0 <= heldout < 1.0:
        raise InvalidConfig(f"heldout = {heldout}; expected a share in [0, 1): hold out 0.2, say")
    numbers = np.array([_uniform(name, seed) for name in ids])
    return np.where(numbers < heldout / 2, 0, np.where(numbers < heldout, 1, 2)).astype(np.int8)


def in_part(parts: NDArray[np.int8], part: Part) -> Bools:
    """Which documents belong to ``part``."""
    return np.equal(parts, _PARTS.index(part))


def _uniform(name: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


@dataclass(frozen=True, eq=False)
class Ranges:
    """Row ranges laid end to end: a virtual sequence of ``n`` rows.

    Attributes:
        begins: [r] first row of each range.
        before: [r + 1] virtual rows before each range, and ``n`` at the end.
    """

    begins: Ints
    before: Ints

    @classmethod
    def of(cls, begins: Ints, counts: Ints) -> Ranges:
        """Ranges from their first rows and lengths; empty ones vanish and adjacent ones join."""
        begins, counts = begins[counts > 0], counts[counts > 0]
        ends = begins + counts
        heads = np.ones(len(begins), np.bool_)
        heads[1:] = begins[1:] != ends[:-1]
        before = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        return cls(begins[heads], np.append(before[:-1][heads], before[-1]))

    @property
    def ends(self) -> Ints:
        """[r] the row after the last of each range."""
        return np.asarray(self.begins + np.diff(self.before), np.int64)

    def inside(self, rows: Ints) -> Ints:
        """Those of the ascending ``rows`` that lie in one of the ranges."""
        at = np.searchsorted(self.begins, rows, side="right") - 1
        return np.asarray(rows[(at >= 0) & (rows < self.ends[at])], np.int64) if len(self.begins) else rows[:0]

    def without(self, rows: Ints) -> Ranges:
        """The same ranges with the ascending ``rows`` taken out, wherever these lie in them."""
        holes = self.inside(rows)
        begins = np.sort(np.concatenate([self.begins, holes + 1]))
        ends = np.sort(np.concatenate([self.ends, holes]))
        return Ranges.of(begins, ends - begins)

    @property
    def n(self) -> int:
        """Rows in all."""
        return int(self.before[-1])

    def take(self, virtual: Ints) -> Ints:
        """The rows behind places in the virtual sequence."""
        at = np.searchsorted(self.before, virtual, side="right") - 1
        return np.asarray(self.begins[at] + virtual - self.before[at], np.int64)
