"""``Affinities``: how much each token wants each feature, behind questions instead of a tensor.

A rule asks for the largest entries per row or per batch, or those above a threshold, gets pairs, and asks for
their differentiable values. Which implementation answers (dense, settled in float64, one day chunked or sharded)
is not the rule's business.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .clock import END, Clock
from .errors import InvalidInput
from .ops.contend import first_in_columns, first_of_all
from .ops.rectified import rectified_means, weigh
from .ops.select import Everything, Pairs, entries_above, first_in_rows, select_batch, select_rows
from .ops.select_columns import select_columns
from .ops.settle import error_band, exact_rows, exact_values, settled_above, settled_rows
from .ops.soft_top_k import SoftPairs, soft_pairs
from .trace import Dictionary
from .world import SOLO, World

__all__ = [
    "Affinities",
    "DenseAffinities",
    "Everything",
    "Ordered",
    "Pairs",
    "Scope",
    "SettledAffinities",
    "Survey",
]

Scope = Literal["rank", "global"]
"""Whose tokens compete: those of this process, or those of all processes."""


class Ordered(NamedTuple):
    """Each token's first features in some order, the first one first.

    Both [n, k]: ``features`` int64, ``values`` what they get if chosen, detached. A token that has fewer features
    ends in zeros.
    """

    features: Tensor
    values: Tensor


class Affinities(abc.ABC):
    """Pre-activations pi = W_enc (x - b_dec) + b_enc of n tokens; affinities are ReLU(pi).

    All choosing happens on detached values and takes strictly positive affinities only; ties go to the lower
    feature within a row, to the earlier row across rows. Answers are in canonical order: by row, then by feature.

    Attributes:
        n: number of tokens.
        d_sae: number of features.
        clock: when this is.
        world: the processes that share the batch.
    """

    n: int
    d_sae: int
    clock: Clock
    world: World

    @abc.abstractmethod
    def top_rows(self, k: Tensor) -> Pairs:
        """The ``k[b]`` largest of every row; ``k [n]`` int64."""

    @abc.abstractmethod
    def top_gained(self, k: Tensor, gain: Tensor) -> Pairs:
        """The ``k[b]`` largest of every row after each feature is multiplied by ``gain [d_sae]``, at least 0."""

    @abc.abstractmethod
    def ordered(self, k: int, shift: Tensor | None = None, least: Tensor | None = None) -> Ordered:
        """The first ``k`` of every row by falling pre-activation less ``shift [d_sae]``; at most all features.

        Only affinities above ``least [d_sae]`` take part.
        """

    @abc.abstractmethod
    def top_batch(self, m: int, scope: Scope = "rank") -> Pairs:
        """The ``m`` largest of the batch.

        With scope ``global`` of the batch of all processes, which must all ask; each gets its own share.
        """

    @abc.abstractmethod
    def top_columns(self, quota: Tensor, scope: Scope = "rank") -> Pairs:
        """The ``quota[f]`` largest of every feature; ``quota [d_sae]`` int64.

        With scope ``global`` over the rows of all processes, which must all ask; each gets its own share.
        """

    @abc.abstractmethod
    def soft_rows(self, k: Tensor, alpha: float, floor: float) -> SoftPairs:
        """The entries that a soft top ``k [n]`` of every row gives the weight ``floor`` or more."""

    @abc.abstractmethod
    def weigh(self, weight: Tensor) -> Tensor:
        """[n]: every token's affinities times ``weight [d_sae]``, summed; differentiable in ``weight`` alone."""

    @abc.abstractmethod
    def means(self, every: int = 1) -> Tensor:
        """[d_sae]: every feature's mean affinity over each ``every``-th row."""

    @abc.abstractmethod
    def peaks(self) -> Tensor:
        """[d_sae]: every feature's largest pre-activation."""

    @abc.abstractmethod
    def above(self, theta: Tensor | float) -> Pairs:
        """All strictly above ``theta`` (a number or [d_sae]); below zero means zero."""

    @abc.abstractmethod
    def fired(self, theta: Tensor | float) -> Pairs | Everything:
        """All pre-activations strictly above ``theta`` (a number or [d_sae]), negative ones included.

        Or all there are, where so many are above that listing them would cost more: mask what ``at`` gives.
        """

    @abc.abstractmethod
    def biases(self) -> Tensor:
        """[d_sae] ``b_enc``, the part of ``at`` that is the same for every token; differentiable."""

    @abc.abstractmethod
    def near(self, theta: Tensor | float, width: float) -> Pairs:
        """All pre-activations with ``|pi - theta| < width / 2``, negative ones included."""

    @abc.abstractmethod
    def at(self, pairs: Pairs | Everything) -> Tensor:
        """[nnz] pre-activations at the pairs ([n, d_sae] at all), differentiable in x, b_dec, W_enc and b_enc.

        The pairs may come in any order and repeat; after ``narrow`` they must be among its features. At pairs
        that were chosen the value is the affinity, above zero.
        """

    @abc.abstractmethod
    def narrow(self, rows: Tensor, features: Tensor) -> Affinities:
        """The same questions about some rows and features only.

        Args:
            rows: [m] int64; they are numbered 0 to m - 1 in the answers.
            features: [g] int64, ascending; they keep their numbers, all others are never chosen.
        """

    def precise(self, rows: Tensor) -> Affinities | None:
        """The rows, numbered from 0, in float64; None where answers need not be independent of the batch."""
        return None

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """[n, d_sae] affinities, differentiable: for reference rules and tests, at the dense price."""


CROWDED = 0.03
"""Share of the pre-activations above which ``fired`` lists none of them; see docs/speed.md."""

_LOOK = 64  # rows that the share is estimated on

Survey = Callable[[], Iterator[tuple[Affinities, Tensor]]]
"""Each call runs once over the calibration tokens and yields (affinities, x) per block."""


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


class SettledAffinities(DenseAffinities):
    """The same answers, decided in float64 where float32 rounding could change them.

    ``top_rows`` and ``above`` then give a token the same features whatever batch it comes in.
    """

    def top_rows(self, k: Tensor) -> Pairs:
        return self._named(settled_rows(self._pre, k, self._band(), self._exact))

    def above(self, theta: Tensor | float) -> Pairs:
        theta = self._columns(theta).clamp(min=0)
        return self._named(settled_above(self._pre, theta, self._band(), self._exact))

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
        pairs = self._named(pairs)
        return exact_values(self._centred, self._dictionary.weight, self._dictionary.b_enc, pairs)


def _share_above(pre: Tensor, bound: Tensor) -> float:
    """The share of entries above ``bound``, on some of the rows."""
    if pre.numel() == 0:
        return 0.0
    some = pre[:: max(len(pre) // _LOOK, 1)]
    return float((some > bound).sum()) / some.numel()
