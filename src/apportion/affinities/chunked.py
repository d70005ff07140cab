"""Answers from the encoder's product in blocks of features, of which one at a time is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..clock import END, Clock
from ..errors import InvalidInput
from ..ops.above import Everything, Pairs, entries_above
from ..ops.contend import first_in_columns, first_of_all
from ..ops.dots import dots_at
from ..ops.rectified import rectified_means
from ..ops.rectified import weigh as weigh_block
from ..ops.running import Best, BestOfAll, BestOfRows, Found, joined
from ..ops.select import first_in_rows
from ..ops.select_columns import select_columns
from ..ops.soft_top_k import SoftPairs, soft_pairs
from ..ops.soft_top_k.solve import Threshold
from ..trace import Dictionary
from ..workspace import Workspace
from ..world import SOLO, World
from .base import Affinities, Ordered, Scope
from .dense import CROWDED, DenseAffinities

_ENTRIES = 1 << 24  # 67 MB in float32

Block = tuple[Tensor, Tensor]
"""Features [c], and all rows' pre-activations [n, c] at them, in a buffer that the next block overwrites."""


class ChunkedAffinities(Affinities):
    """The same answers without the whole product: every question computes it anew, block by block.

    Values at the pairs of the last answer are kept, so that a rule with one question costs one product. Where so
    much is above a threshold that ``fired`` lists nothing, ``at`` gives a whole matrix, and so does ``dense``.

    Args:
        x: [n, d_in].
        centred: ``x - b_dec``, detached.
        dictionary: what gradients reach.
        chunk: features of a block; None for blocks of ``_ENTRIES``.
        workspace: lends the buffer of a block.
        features: [g] those that take part, ascending; None for all.
    """

    def __init__(
        self,
        x: Tensor,
        centred: Tensor,
        dictionary: Dictionary,
        *,
        chunk: int | None = None,
        clock: Clock = END,
        world: World = SOLO,
        workspace: Workspace | None = None,
        features: Tensor | None = None,
    ) -> None:
        self.n, self.d_sae = len(x), dictionary.d_sae
        self.clock, self.world = clock, world
        self._x, self._centred, self._dictionary = x, centred, dictionary
        self._features, self._chunk = features, chunk or max(_ENTRIES // max(len(x), 1), 1)
        self._workspace = workspace or Workspace()
        self._width = dictionary.d_sae if features is None else len(features)
        self._last = Found(Pairs(*[torch.empty(0, dtype=torch.int64, device=x.device)] * 2), centred[:0, 0])

    def top_rows(self, k: Tensor) -> Pairs:
        return self._best(BestOfRows(k))

    def top_gained(self, k: Tensor, gain: Tensor) -> Pairs:
        return self._best(BestOfRows(k, gain))

    def ordered(self, k: int, shift: Tensor | None = None, least: Tensor | None = None) -> Ordered:
        k = min(k, self._width)
        taking_part = slice(None) if self._features is None else self._features
        shift, least = (None if t is None else t[taking_part] for t in (shift, least))
        parts = [first_in_rows(pre, k, shift, least) for _, pre in self._row_blocks()]
        columns, values = (torch.cat(side) for side in zip(*parts, strict=True))
        return Ordered(columns if self._features is None else self._features[columns], values)

    def top_batch(self, m: int, scope: Scope = "rank") -> Pairs:
        pairs = self._best(BestOfAll(m))
        if scope == "global" and self.world.size > 1:
            return self._keep(self._last.take(first_of_all(self._last.values, m, self.world)))
        return pairs

    def top_columns(self, quota: Tensor, scope: Scope = "rank") -> Pairs:
        found = self._found(lambda pre, features: select_columns(pre, quota[features]))
        if scope == "global" and self.world.size > 1:
            found = found.take(first_in_columns(found.values, found.pairs.features, quota, self.world))
        return self._keep(found)

    def soft_rows(self, k: Tensor, alpha: float, floor: float) -> SoftPairs:
        found, thresholds = [], []
        for rows, pre in self._row_blocks():
            (at, features), threshold = soft_pairs(pre, k[rows], alpha, floor)
            found.append(Found(Pairs(at + rows.start, features), Pairs(at, features).of(pre)))
            thresholds.append(threshold)
        sides = zip(*thresholds, strict=True)
        threshold = Threshold(*(None if side[0] is None else torch.cat(side) for side in sides))  # type: ignore[arg-type]
        return SoftPairs(self._keep(joined(found)), threshold)

    def weigh(self, weight: Tensor) -> Tensor:
        return _Weigh.apply(weight.to(self._x.dtype), self._blocks, self.n)  # type: ignore[no-any-return]

    def means(self, every: int = 1) -> Tensor:
        means = self._centred.new_zeros(self.d_sae)
        for features, pre in self._blocks(every):
            means[features] = rectified_means(pre)
        return means

    def peaks(self) -> Tensor:
        peaks = self._centred.new_full((self.d_sae,), -torch.inf)
        for features, pre in self._blocks() if self.n else ():
            peaks[features] = pre.amax(0)
        return peaks

    def above(self, theta: Tensor | float) -> Pairs:
        return self._keep(self._found(lambda pre, f: entries_above(pre, self._bound(theta, f).clamp(min=0))))

    def fired(self, theta: Tensor | float) -> Pairs | Everything:
        parts, listed = [], 0
        most = CROWDED * self.n * self.d_sae if self._features is None else torch.inf
        for features, pre in self._blocks():
            parts.append(_at(entries_above(pre, self._bound(theta, features)), pre, features))
            listed += len(parts[-1].values)
            if listed > most:
                return Everything(self.n, self.d_sae)
        return self._keep(joined(parts))

    def biases(self) -> Tensor:
        return self._dictionary.b_enc

    def near(self, theta: Tensor | float, width: float) -> Pairs:
        def inside(pre: Tensor, features: Tensor) -> Pairs:
            bound = self._bound(theta, features)
            pairs = entries_above(pre, bound - width / 2)
            return pairs.take(pairs.of(pre) < (bound + width / 2).expand(len(features))[pairs.features])

        return self._keep(self._found(inside))

    def at(self, pairs: Pairs | Everything) -> Tensor:
        if isinstance(pairs, Everything):
            return self._whole().at(pairs)
        if pairs is self._last.pairs:
            values = self._last.values
        else:
            values = dots_at(self._centred, self._dictionary.weight, self._dictionary.b_enc, pairs)
        return self._dictionary.encode_at(self._x, self._centred, values, *pairs)

    def narrow(self, rows: Tensor, features: Tensor) -> ChunkedAffinities:
        if self._features is not None:
            raise InvalidInput("narrowed affinities cannot be narrowed again; narrow the whole ones once")
        return ChunkedAffinities(
            self._x[rows],
            self._centred[rows],
            self._dictionary,
            chunk=self._chunk,
            clock=self.clock,
            world=self.world,
            workspace=self._workspace,
            features=features,
        )

    def hold(self) -> None:
        self._dictionary = self._dictionary.held(self._workspace)

    def dense(self) -> Tensor:
        return self._whole().dense()

    def _blocks(self, every: int = 1) -> Iterator[Block]:
        """The product over each ``every``-th row, in blocks of features."""
        centred, d = self._centred[::every], self._dictionary
        n, chunk = len(centred), min(self._chunk, max(self._width, 1))
        buffer = self._buffer()
        for start in range(0, max(self._width, 1), chunk):
            part = slice(start, min(start + chunk, self._width))
            chosen = part if self._features is None else self._features[part]
            with torch.no_grad():
                width = part.stop - part.start
                out = buffer[: n * width].view(n, width)
                torch.addmm(d.b_enc[chosen], centred, d.weight[chosen].T, out=out)
            names = torch.arange(part.start, part.stop, device=centred.device)
            yield names if self._features is None else self._features[part], out

    def _row_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The product over all features, in blocks of rows of the same size."""
        d, chosen = self._dictionary, slice(None) if self._features is None else self._features
        weight, b_enc = d.weight.detach()[chosen], d.b_enc.detach()[chosen]
        buffer = self._buffer()
        step = max(len(buffer) // max(self._width, 1), 1)
        for start in range(0, max(self.n, 1), step):
            rows = slice(start, min(start + step, self.n))
            out = buffer[: (rows.stop - start) * self._width].view(rows.stop - start, self._width)
            with torch.no_grad():
                torch.addmm(b_enc, self._centred[rows], weight.T, out=out)
            yield rows, out

    def _buffer(self) -> Tensor:
        """Room for a block of features, or a row; its size does not depend on how many features take part."""
        size = max(self.n * min(self._chunk, self.d_sae), self.d_sae)
        return self._workspace.lend("block of pre", (size,), self._centred)

    def _best(self, best: Best) -> Pairs:
        for features, pre in self._blocks():
            best.add(pre, features)
        return self._keep(best.found())

    def _found(self, choose: Callable[[Tensor, Tensor], Pairs]) -> Found:
        """What ``choose`` takes of each block, where features are numbered from 0."""
        return joined([_at(choose(pre, features), pre, features) for features, pre in self._blocks()])

    def _keep(self, found: Found) -> Pairs:
        """The pairs; their values are kept for the ``at`` that mostly follows."""
        self._last = found
        return found.pairs

    def _bound(self, theta: Tensor | float, features: Tensor) -> Tensor:
        """A threshold in the numbering of a block."""
        bound = torch.as_tensor(theta, dtype=self._centred.dtype, device=self._centred.device)
        return bound[features] if bound.ndim else bound

    def _whole(self) -> DenseAffinities:
        d, chosen = self._dictionary, slice(None) if self._features is None else self._features
        with torch.no_grad():
            pre = torch.addmm(d.b_enc[chosen], self._centred, d.weight[chosen].T)
        return DenseAffinities(
            self._x, self._centred, pre, d, clock=self.clock, world=self.world, features=self._features
        )


def _at(pairs: Pairs, pre: Tensor, features: Tensor) -> Found:
    """Pairs of a block under the names of their features, with their values."""
    return Found(Pairs(pairs.rows, features[pairs.features]), pairs.of(pre))


class _Weigh(torch.autograd.Function):
    """Products with all affinities, which the backward pass computes a second time."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, blocks: Callable[[], Iterator[Block]], n: int) -> Tensor:
        ctx.blocks, ctx.like = blocks, weight.detach()
        total = weight.new_zeros(n)
        for features, pre in blocks():
            total += weigh_block(pre, weight[features])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        d_weight = torch.zeros_like(ctx.like)
        for features, pre in ctx.blocks():
            d_weight[features] = pre.relu_().T @ grad
        return d_weight, None, None
