"""Answers that rounding cannot change: what frozen rules are asked with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.above import Pairs
from ..ops.settle import error_band, exact_rows, exact_values, settled_above, settled_rows
from .dense import DenseAffinities


class SettledAffinities(DenseAffinities):
    """The same answers, decided in float64 where float32 rounding could change them.

    ``top_rows`` and ``above`` then give a token the same features whatever batch it comes in.
    """

    def top_rows(self, k: Tensor) -> Pairs:
        return self._named(settled_rows(self._pre, k, self._band(), self._exact))

    def above(self, theta: Tensor | float) -> Pairs:
        theta = self._columns(theta).clamp(min=0)
        return self._named(settled_above(self._pre, theta, self._band(), self._exact))

    def exact(self, pairs: Pairs) -> Tensor:
        return exact_values(self._centred, self._dictionary.weight, self._dictionary.b_enc, pairs)

    def slack(self) -> Tensor:
        return self._band().double()[:, 0]

    def precise(self, rows: Tensor) -> DenseAffinities:
        centred = self._centred[rows].double()
        pre = exact_rows(centred, self._dictionary.weight, self._dictionary.b_enc)
        x = self._x[rows].double()
        return DenseAffinities(x, centred, pre, self._dictionary, clock=self.clock, world=self.world)

    def _values(self, rows: Tensor, columns: Tensor) -> Tensor:
        # What was chosen is positive in float64; its float32 product may have been rounded below zero.
        return super()._values(rows, columns).clamp(min=torch.finfo(self._pre.dtype).tiny)

    def _band(self) -> Tensor:
        return error_band(self._centred, self._dictionary.weight, self._dictionary.b_enc)

    def _exact(self, pairs: Pairs) -> Tensor:
        return self.exact(self._named(pairs))
