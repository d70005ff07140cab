"""Selections from a matrix that comes in blocks of columns, from left to right, and is never held as a whole.

What was best so far gives the floor that the entries of the next block must exceed, so that each block adds fewer
candidates than the one before. Ties go as in ``select``: earlier blocks hold the lower features.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .above import Pairs, entries_above
from .select import first_of, rank_in_rows, select_batch, select_rows


class Found(NamedTuple):
    """Entries and their values [nnz]."""

    pairs: Pairs
    values: Tensor

    def take(self, keep: Tensor) -> Found:
        """The entries where the mask ``keep [nnz]`` is true."""
        return Found(self.pairs.take(keep), self.values[keep])


def joined(parts: Sequence[Found]) -> Found:
    """Entries of blocks of columns, from left to right, or of blocks of rows, in canonical order."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part.pairs.rows for part in parts])
    order = rows.argsort(stable=True)
    features = torch.cat([part.pairs.features for part in parts])[order]
    return Found(Pairs(rows[order], features), torch.cat([part.values for part in parts])[order])


class Best(abc.ABC):
    """The best strictly positive entries of the blocks so far."""

    def __init__(self) -> None:
        self._best: Found | None = None
        self._pending: list[Found] = []

    def add(self, a: Tensor, features: Tensor) -> None:
        """Look at a block ``a [n, c]`` of columns that stand for ``features [c]``, above all before."""
        pairs = self._candidates(a, features)
        self._pending.append(Found(Pairs(pairs.rows, features[pairs.features]), pairs.of(a)))
        # To sort them in with every block would cost more than the candidates that an older floor lets through.
        if self._best is None or sum(len(part.values) for part in self._pending) > len(self._best.values):
            self._merge()

    def found(self) -> Found:
        """The entries with their values, in canonical order."""
        self._merge()
        assert self._best is not None, "no block was added"
        return self._best

    def _merge(self) -> None:
        if self._pending:
            before = [] if self._best is None else [self._best]
            self._best, self._pending = self._cut(joined([*before, *self._pending])), []

    @abc.abstractmethod
    def _candidates(self, a: Tensor, features: Tensor) -> Pairs:
        """Entries of a block that may be among the best."""

    @abc.abstractmethod
    def _cut(self, found: Found) -> Found:
        """The best of ``found``, which has all that may be. Raises the floor."""


class BestOfRows(Best):
    """The ``k[b]`` largest of every row.

    Args:
        k: [n] int64.
        gain: [d_sae], at least 0, what each feature counts times; None for 1.
    """

    def __init__(self, k: Tensor, gain: Tensor | None = None) -> None:
        super().__init__()
        self._k, self._gain = k, gain
        self._floor: Tensor | None = None

    def _candidates(self, a: Tensor, features: Tensor) -> Pairs:
        score = a if self._gain is None else a * self._gain[features]
        return select_rows(score, self._k) if self._floor is None else entries_above(score, self._floor)

    def _cut(self, found: Found) -> Found:
        scores = found.values if self._gain is None else found.values * found.pairs.spread(self._gain)
        rank, k = rank_in_rows(found.pairs, scores, len(self._k)), self._k[found.pairs.rows]
        self._floor = scores.new_zeros(len(self._k), 1).masked_fill_((self._k <= 0)[:, None], torch.inf)
        last = rank == k - 1
        self._floor[found.pairs.rows[last], 0] = scores[last]
        return found.take(rank < k)


class BestOfAll(Best):
    """The ``m`` largest, ties to the earlier row."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self._m = m
        self._floor: Tensor | None = None

    def _candidates(self, a: Tensor, features: Tensor) -> Pairs:
        if self._floor is None or self._m <= 0:
            return select_batch(a, self._m)
        # At the least value so far, and not above it: an earlier row of this block goes before a later one.
        return entries_above(a, torch.nextafter(self._floor, self._floor.new_zeros(())))

    def _cut(self, found: Found) -> Found:
        found = found.take(first_of(found.values, self._m))
        self._floor = found.values.min() if len(found.values) == self._m > 0 else None
        return found
