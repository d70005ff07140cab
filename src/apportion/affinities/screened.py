"""Answers chosen by a bfloat16 product and decided in float32."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..clock import END, Clock
from ..ops.above import Everything, Pairs, entries_above
from ..ops.contend import first_of_all
from ..ops.dots import dots_at
from ..ops.running import Found, joined
from ..ops.screen import screen_band, screened_batch, screened_rows
from ..ops.select import select_rows
from ..ops.soft_top_k import SoftPairs
from ..trace import Dictionary
from ..workspace import Workspace
from ..world import SOLO, World
from .base import Affinities, Ordered, Scope
from .dense import DenseAffinities


class ScreenedAffinities(Affinities):
    """The same answers as the dense ones, up to what float32 cannot tell apart, for half of the product's time.

    A bfloat16 product leaves few entries that may be among the largest, by a bound that holds for every entry;
    these are computed in float32, and rows of which it cannot say so are computed whole. That is how ``top_rows``
    and ``top_batch`` are answered; other questions cost the float32 product besides, once.

    Args:
        x: [n, d_in] float32.
        centred: ``x - b_dec``, detached.
        dictionary: what gradients reach.
        workspace: lends the large buffers.

    Attributes:
        undecided: share of the rows that the last answer computed whole.
    """

    def __init__(
        self,
        x: Tensor,
        centred: Tensor,
        dictionary: Dictionary,
        *,
        clock: Clock = END,
        world: World = SOLO,
        workspace: Workspace | None = None,
    ) -> None:
        self.n, self.d_sae = len(x), dictionary.d_sae
        self.clock, self.world = clock, world
        self.undecided = 0.0
        self._x, self._centred, self._dictionary = x, centred, dictionary
        self._workspace = workspace or Workspace()
        self._last: Found | None = None
        self._rough, self._band = self._screen()

    def top_rows(self, k: Tensor) -> Pairs:
        k = k.clamp(0, self.d_sae)
        found, undecided = screened_rows(self._rough, k, self._band, self._dots)
        self.undecided = float(undecided.float().mean()) if self.n else 0.0
        if self.undecided:
            rows = undecided.nonzero().squeeze(1)
            pre = self._product(rows)
            found = joined([found, _found(select_rows(pre, k[rows]), pre, rows)])
        return self._keep(found)

    def top_batch(self, m: int, scope: Scope = "rank") -> Pairs:
        found = screened_batch(self._rough, m, self._band, self._dots, self._rows_above) if self.n else None
        self.undecided = 1.0 if found is None else self.undecided
        if found is None:
            return self._whole.top_batch(m, scope)
        if scope == "global" and self.world.size > 1:
            found = found.take(first_of_all(found.values, m, self.world))
        return self._keep(found)

    def top_gained(self, k: Tensor, gain: Tensor) -> Pairs:
        return self._whole.top_gained(k, gain)

    def ordered(self, k: int, shift: Tensor | None = None, least: Tensor | None = None) -> Ordered:
        return self._whole.ordered(k, shift, least)

    def top_columns(self, quota: Tensor, scope: Scope = "rank") -> Pairs:
        return self._whole.top_columns(quota, scope)

    def soft_rows(self, k: Tensor, alpha: float, floor: float) -> SoftPairs:
        return self._whole.soft_rows(k, alpha, floor)

    def weigh(self, weight: Tensor) -> Tensor:
        return self._whole.weigh(weight)

    def means(self, every: int = 1) -> Tensor:
        rows = torch.arange(0, self.n, every, device=self._x.device)
        return self.narrow(rows, torch.arange(self.d_sae, device=self._x.device)).means()

    def peaks(self) -> Tensor:
        return self._whole.peaks()

    def above(self, theta: Tensor | float) -> Pairs:
        return self._whole.above(theta)

    def fired(self, theta: Tensor | float) -> Pairs | Everything:
        return self._whole.fired(theta)

    def biases(self) -> Tensor:
        return self._dictionary.b_enc

    def near(self, theta: Tensor | float, width: float) -> Pairs:
        return self._whole.near(theta, width)

    def at(self, pairs: Pairs | Everything) -> Tensor:
        if isinstance(pairs, Everything) or "_whole" in self.__dict__:
            return self._whole.at(pairs)
        last = self._last
        values = last.values if last is not None and pairs is last.pairs else self._dots(pairs)
        return self._dictionary.encode_at(self._x, self._centred, values, *pairs)

    def narrow(self, rows: Tensor, features: Tensor) -> DenseAffinities:
        d, x, centred = self._dictionary, self._x[rows], self._centred[rows]
        with torch.no_grad():
            pre = torch.addmm(d.b_enc[features], centred, d.weight[features].T)
        return DenseAffinities(x, centred, pre, d, clock=self.clock, world=self.world, features=features)

    def hold(self) -> None:
        self._dictionary = self._dictionary.held(self._workspace)

    def dense(self) -> Tensor:
        return self._whole.dense()

    @torch.no_grad()
    def _screen(self) -> tuple[Tensor, Tensor]:
        """The bfloat16 product [n, d_sae], and how far off it is in each row [n] before it is stored."""
        d, rough = self._dictionary, self._centred.bfloat16()
        weight = self._workspace.lend("rough weight", tuple(d.weight.shape), rough).copy_(d.weight)
        out = self._workspace.lend("rough pre", (self.n, self.d_sae), rough)
        torch.addmm(d.b_enc.bfloat16(), rough, weight.T, out=out)
        return out, screen_band(self._centred, d.weight, d.b_enc, rough, weight)

    @cached_property
    def _whole(self) -> DenseAffinities:
        out = self._workspace.lend("pre", (self.n, self.d_sae), self._centred)
        pre = self._product(slice(None), out)
        return DenseAffinities(self._x, self._centred, pre, self._dictionary, clock=self.clock, world=self.world)

    @torch.no_grad()
    def _product(self, rows: Tensor | slice, out: Tensor | None = None) -> Tensor:
        d = self._dictionary
        return torch.addmm(d.b_enc, self._centred[rows], d.weight.T, out=out)

    def _rows_above(self, mask: Tensor, least: float) -> Found:
        rows = mask.nonzero().squeeze(1)
        self.undecided = len(rows) / self.n
        pre = self._product(rows)
        floor = torch.nextafter(pre.new_tensor(least), pre.new_zeros(()))
        return _found(entries_above(pre, floor), pre, rows)

    def _dots(self, pairs: Pairs) -> Tensor:
        return dots_at(self._centred, self._dictionary.weight, self._dictionary.b_enc, pairs)

    def _keep(self, found: Found) -> Pairs:
        """The pairs; their values are kept for the ``at`` that mostly follows."""
        self._last = found
        return found.pairs


def _found(pairs: Pairs, pre: Tensor, rows: Tensor) -> Found:
    """Pairs of some rows, under the numbers of these."""
    return Found(Pairs(rows[pairs.rows], pairs.features), pairs.of(pre))
