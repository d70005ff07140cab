"""Answers from the encoder's whole product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clock import END, Clock
from ..errors import InvalidInput
from ..ops.above import Everything, Pairs, entries_above
from ..ops.contend import first_in_columns, first_of_all
from ..ops.rectified import rectified_means, weigh
from ..ops.select import first_in_rows, select_batch, select_rows
from ..ops.select_columns import select_columns
from ..ops.soft_top_k import SoftPairs, soft_pairs
from ..trace import Dictionary
from ..world import SOLO, World
from .base import Affinities, Ordered, Scope

CROWDED = 0.07
"""Share of the pre-activations above which ``fired`` lists none of them; see docs/figures.md."""

_LOOK = 64  # rows that the share is estimated on


class DenseAffinities(Affinities):
    """Answers from the whole product, held as one matrix.

    Args:
        x: [n, d_in].
        centred: ``x - b_dec``, detached.
        pre: [n, len(features)] the product, detached.
        dictionary: what gradients reach.
        features: [g] the columns that ``pre`` holds, ascending; None for all.
    """

    def __init__(
        self,
        x: Tensor,
        centred: Tensor,
        pre: Tensor,
        dictionary: Dictionary,
        *,
        clock: Clock = END,
        world: World = SOLO,
        features: Tensor | None = None,
    ) -> None:
        self.n, self.d_sae = len(x), dictionary.d_sae
        self.clock, self.world = clock, world
        self._x, self._centred, self._pre = x, centred, pre
        self._dictionary, self._features = dictionary, features

    def top_rows(self, k: Tensor) -> Pairs:
        return self._named(select_rows(self._pre, k))

    def top_gained(self, k: Tensor, gain: Tensor) -> Pairs:
        return self._named(select_rows(self._pre * self._columns(gain), k))

    def ordered(self, k: int, shift: Tensor | None = None, least: Tensor | None = None) -> Ordered:
        shift, least = (None if t is None else self._columns(t) for t in (shift, least))
        columns, values = first_in_rows(self._pre, min(k, self._pre.shape[1]), shift, least)
        return Ordered(columns if self._features is None else self._features[columns], values)

    def top_batch(self, m: int, scope: Scope = "rank") -> Pairs:
        local = select_batch(self._pre, m)
        if scope == "global" and self.world.size > 1:
            local = local.take(first_of_all(self._pre[local.rows, local.features], m, self.world))
        return self._named(local)

    def top_columns(self, quota: Tensor, scope: Scope = "rank") -> Pairs:
        quota = quota if self._features is None else quota[self._features]
        local = select_columns(self._pre, quota)
        if scope == "global" and self.world.size > 1:
            values = self._pre[local.rows, local.features]
            local = local.take(first_in_columns(values, local.features, quota, self.world))
        return self._named(local)

    def soft_rows(self, k: Tensor, alpha: float, floor: float) -> SoftPairs:
        return soft_pairs(self._pre, k, alpha, floor)

    def weigh(self, weight: Tensor) -> Tensor:
        return weigh(self._pre, weight)

    def means(self, every: int = 1) -> Tensor:
        means = self._pre.new_zeros(self.d_sae)
        columns = slice(None) if self._features is None else self._features
        means[columns] = rectified_means(self._pre[::every])
        return means

    def peaks(self) -> Tensor:
        peaks = self._pre.new_full((self.d_sae,), -torch.inf)
        columns = slice(None) if self._features is None else self._features
        if self.n:
            peaks[columns] = self._pre.amax(0)
        return peaks

    def above(self, theta: Tensor | float) -> Pairs:
        return self._named(entries_above(self._pre, self._columns(theta).clamp(min=0)))

    def fired(self, theta: Tensor | float) -> Pairs | Everything:
        bound = self._columns(theta)
        if self._features is None and _share_above(self._pre, bound) > CROWDED:
            return Everything(self.n, self.d_sae)
        return self._named(entries_above(self._pre, bound))

    def biases(self) -> Tensor:
        return self._dictionary.b_enc

    def near(self, theta: Tensor | float, width: float) -> Pairs:
        bound = self._columns(theta)
        pairs = entries_above(self._pre, bound - width / 2)
        value = self._pre[pairs.rows, pairs.features]
        return self._named(pairs.take(value < (bound + width / 2).expand(self._pre.shape[1])[pairs.features]))

    def at(self, pairs: Pairs | Everything) -> Tensor:
        if isinstance(pairs, Everything):
            return self._dictionary.encode_whole(self._x, self._centred, self._pre)
        columns = pairs.features
        if self._features is not None:
            columns = torch.searchsorted(self._features, pairs.features)
        values = self._values(pairs.rows, columns)
        return self._dictionary.encode_at(self._x, self._centred, values, pairs.rows, pairs.features)

    def narrow(self, rows: Tensor, features: Tensor) -> DenseAffinities:
        if self._features is not None:
            raise InvalidInput("narrowed affinities cannot be narrowed again; narrow the whole ones once")
        return type(self)(
            self._x[rows],
            self._centred[rows],
            self._pre[rows[:, None], features],
            self._dictionary,
            clock=self.clock,
            world=self.world,
            features=features,
        )

    def hold(self) -> None:
        pass  # the product is held

    def dense(self) -> Tensor:
        d = self._dictionary
        pre = torch.addmm(d.b_enc, self._x - d.b_dec, d.weight.T).relu()
        if self._features is None:
            return pre
        masked = torch.zeros_like(pre)
        masked[:, self._features] = pre[:, self._features]
        return masked

    def _values(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of ``pre``, [nnz]."""
        return self._pre[rows, columns]

    def _columns(self, theta: Tensor | float) -> Tensor:
        """A threshold in the numbering of ``pre``'s columns."""
        bound = torch.as_tensor(theta, dtype=self._pre.dtype, device=self._pre.device)
        return bound[self._features] if bound.ndim and self._features is not None else bound

    def _named(self, pairs: Pairs) -> Pairs:
        """Pairs with the columns of ``pre`` replaced by the features they stand for."""
        return pairs if self._features is None else Pairs(pairs.rows, self._features[pairs.features])


def _share_above(pre: Tensor, bound: Tensor) -> float:
    """The share of entries above ``bound``, on some of the rows."""
    if pre.numel() == 0:
        return 0.0
    some = pre[:: max(len(pre) // _LOOK, 1)]
    return float((some > bound).sum()) / some.numel()
