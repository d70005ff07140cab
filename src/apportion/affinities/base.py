"""The contract: what a rule may ask of affinities, and in which order the answers come."""

from __future__ import annotations

import abc
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..clock import Clock
from ..ops.above import Everything, Pairs
from ..ops.soft_top_k import SoftPairs
from ..world import World

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

    def exact(self, pairs: Pairs) -> Tensor:
        """[nnz] float64: the pre-activations at the pairs by which ``above`` decides, detached."""
        return self.at(pairs).detach().double()

    def slack(self) -> Tensor:
        """[n] float64: by how much ``at`` may differ from ``exact`` in each row."""
        return self.biases().new_zeros(self.n, dtype=torch.float64)

    @abc.abstractmethod
    def hold(self) -> None:
        """Answer from now on as of now, though the optimiser be about to move the weights (all but ``dense``).

        Where the product is held that is so anyway; elsewhere the encoder's weights are copied.
        """

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """[n, d_sae] affinities, differentiable: for reference rules and tests, at the dense price."""
