"""``Affinities``: how much each token wants each feature, behind questions instead of a tensor.

A rule asks for the largest entries per row or per batch, or those above a threshold, gets pairs, and asks for
their differentiable values. Which implementation answers (dense, settled in float64, one day chunked or sharded)
is not the rule's business.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from .clock import END, Clock
from .errors import InvalidInput
from .ops.select import Pairs, entries_above, select_batch, select_rows
from .ops.settle import error_band, exact_values, settled_above, settled_rows
from .trace import Dictionary
from .world import SOLO, World

__all__ = ["Affinities", "DenseAffinities", "Pairs", "SettledAffinities"]


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
    def top_batch(self, m: int) -> Pairs:
        """The ``m`` largest of the batch (of this process's rows)."""

    @abc.abstractmethod
    def above(self, theta: Tensor | float) -> Pairs:
        """All strictly above ``theta`` (a number or [d_sae]); below zero means zero."""

    @abc.abstractmethod
    def near(self, theta: Tensor | float, width: float) -> Pairs:
        """All pre-activations with ``|pi - theta| < width / 2``, negative ones included."""

    @abc.abstractmethod
    def at(self, pairs: Pairs) -> Tensor:
        """[nnz] pre-activations at the pairs, differentiable in x, b_dec, W_enc and b_enc.

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

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """[n, d_sae] affinities, differentiable: for reference rules and tests, at the dense price."""


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

    def top_batch(self, m: int) -> Pairs:
        return self._named(select_batch(self._pre, m))

    def above(self, theta: Tensor | float) -> Pairs:
        return self._named(entries_above(self._pre, self._columns(theta).clamp(min=0)))

    def near(self, theta: Tensor | float, width: float) -> Pairs:
        bound = self._columns(theta)
        pairs = entries_above(self._pre, bound - width / 2)
        value = self._pre[pairs.rows, pairs.features]
        return self._named(pairs.take(value < (bound + width / 2).expand(self._pre.shape[1])[pairs.features]))

    def at(self, pairs: Pairs) -> Tensor:
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

    def _values(self, rows: Tensor, columns: Tensor) -> Tensor:
        # What was chosen is positive in float64; its float32 product may have been rounded below zero.
        return super()._values(rows, columns).clamp(min=torch.finfo(self._pre.dtype).tiny)

    def _band(self) -> Tensor:
        return error_band(self._centred, self._dictionary.weight, self._dictionary.b_enc)

    def _exact(self, pairs: Pairs) -> Tensor:
        pairs = self._named(pairs)
        return exact_values(self._centred, self._dictionary.weight, self._dictionary.b_enc, pairs)
