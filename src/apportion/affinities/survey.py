"""The tokens that a rule is fitted on, in folds that no document is in two of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Affinities

FOLDS = 8
"""Folds that documents are dealt to. A rule that is fitted without one of them has seen most of the text."""
_UNIT_ROWS = 4096
"""Rows after which a document counts as another: one long document alone would fill a fold."""
_UNNAMED_ROWS = 64
"""Rows of a unit where documents are not known."""

Rows = Tensor | tuple[Tensor, Tensor | None]
"""Rows ``x [n, d_in]``, alone or with the document of each, [n] int64, those of a document side by side."""


class Part(NamedTuple):
    """A block of the survey.

    Attributes:
        pre: its affinities.
        x: [n, d_in].
        unit: [n] int64, the document of each row, or the piece of it, counted from 0 over the survey.
        fold: [n] int64, the fold of each row.
    """

    pre: Affinities
    x: Tensor
    unit: Tensor
    fold: Tensor


class Survey:
    """Calling it runs once over the calibration tokens and yields (affinities, x) per block.

    Args:
        affinities: of rows ``x [n, d_in]``, as inference has them, and the rows as the dictionary sees them.
        blocks: each call runs once over the rows.
        only: the rows of some folds, all by default.
    """

    def __init__(
        self,
        affinities: Callable[[Tensor], tuple[Affinities, Tensor]],
        blocks: Callable[[], Iterator[Rows]],
        only: frozenset[int] = frozenset(range(FOLDS)),
    ) -> None:
        self._affinities, self._blocks, self._only = affinities, blocks, only

    def __call__(self) -> Iterator[tuple[Affinities, Tensor]]:
        return ((part.pre, part.x) for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """The same blocks with the fold of every row."""
        deal = _Deal()
        for rows in self._blocks():
            x, document = rows if isinstance(rows, tuple) else (rows, None)
            unit, fold = (column.to(x.device) for column in deal.next(len(x), document))
            if len(self._only) < FOLDS:
                keep = torch.isin(fold, torch.tensor(sorted(self._only), device=x.device))
                x, unit, fold = x[keep], unit[keep], fold[keep]
            yield Part(*self._affinities(x), unit, fold)

    def restricted(self, folds: frozenset[int]) -> Survey:
        """The rows of some folds alone."""
        return Survey(self._affinities, self._blocks, folds)


class _Deal:
    """Deals units to folds as they come, each to the fold that has the fewest rows by then."""

    def __init__(self) -> None:
        self.rows = [0] * FOLDS
        self.unit, self.filled, self.fold = -1, 0, 0
        self.document: int | None = None

    def next(self, n: int, document: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unit and fold of the next ``n`` rows."""
        names: list[tuple[int | None, int]] = [(None, n)]
        if document is not None:
            ids, counts = torch.unique_consecutive(document.cpu(), return_counts=True)
            names = list(zip(ids.tolist(), counts.tolist(), strict=True))
        units, folds, sizes = [], [], []
        for name, count in names:
            most = _UNNAMED_ROWS if name is None else _UNIT_ROWS
            while count:
                if self.unit < 0 or name != self.document or self.filled == most:
                    self._open(name)
                took = min(count, most - self.filled)
                self.filled, count = self.filled + took, count - took
                self.rows[self.fold] += took
                units.append(self.unit)
                folds.append(self.fold)
                sizes.append(took)
        repeats = torch.tensor(sizes, dtype=torch.int64)
        unit, fold = (
            torch.tensor(column, dtype=torch.int64).repeat_interleave(repeats) for column in (units, folds)
        )
        return unit, fold

    def _open(self, document: int | None) -> None:
        self.unit, self.filled, self.document = self.unit + 1, 0, document
        self.fold = min(range(FOLDS), key=self.rows.__getitem__)
