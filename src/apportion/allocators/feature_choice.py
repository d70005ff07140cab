"""Feature Choice: every feature takes its quota of the batch's tokens (Ayonrinde 2024, arXiv 2411.02124)."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..affinities import Affinities, Scope
from ..clock import END, Clock
from ..code import Code
from ..errors import InvalidConfig
from ..firing import Firing
from ..ops.zipf import FEWEST, fit_zipf, project_quotas, ranks, whole_quotas
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import Allocation, Allocator, OneKnob, code_at
from .feature_threshold import FeatureThreshold, FeatureThresholdConfig

_FIRINGS = 2
"""Firings that a feature must have seen on average before the curve of all is fitted."""
_ROOM = 2
"""Places of a batch per feature below which the curve gets less than half of them."""


class FeatureChoiceConfig(OneKnob):
    """Quotas per feature.

    Attributes:
        k: mean features per token.
        quotas: ``zipf``: along the Zipf-Mandelbrot curve of the densities that Mutual Choice would give;
            ``uniform``: the same for all.
        warmup: share of the run, its first, under Mutual Choice; the curve needs one.
        refresh_every: steps between looks at what Mutual Choice would do with the same affinities, each of which
            moves ranks and curve; with long gaps the quotas would jump.
        horizon: tokens, of those looked at, that a density remembers.
        at_least: smallest quota of a feature, 0 or 1; None for 1 where the batch has room for it. Of its k n
            places d_sae are then given away before the curve has a say: all at n = d_sae / k, half at twice that.
        wake: weight of the loss that raises the encoder's bias of features with fewer positive affinities than
            their quota. One that has none gets no other gradient, and would be silent for good. 0 as published;
            the recipe has 0.1.
        scope: whose tokens share a quota, those of this process or of all. ``ap.train`` runs one process, so
            ``global`` is for a loop of one's own, which gives ``train_step`` a ``World`` and averages gradients.
    """

    kind: Literal["feature_choice"] = "feature_choice"
    quotas: Literal["zipf", "uniform"] = "zipf"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    refresh_every: int = Field(default=8, gt=0)
    horizon: int = Field(default=100_000, gt=0)
    at_least: Literal[0, 1] | None = None
    wake: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    scope: Scope = "rank"

    def check(self, n_steps: int, batch_size: int, d_sae: int) -> None:
        self.smallest_quota(batch_size, d_sae)
        if self.quotas == "uniform":
            return
        tokens = batch_size * math.ceil(self.warmup * n_steps)
        needed = math.ceil(_FIRINGS * d_sae / self.k)
        if tokens < needed:
            raise InvalidConfig(
                f"a warm-up of {tokens} tokens is too short to fit the densities of {d_sae} features; it takes "
                f"{needed} tokens, so train on more or raise warmup = {self.warmup:g}"
            )
        self._warn_of_little_room(batch_size, d_sae)

    def smallest_quota(self, n: int, d_sae: int) -> int:
        """0 or 1, for a batch of ``n`` tokens. ``InvalidConfig`` if it has no room for ``at_least``."""
        room = int(self.k * n + 1e-6)
        if self.at_least == 1 and room < d_sae:
            raise InvalidConfig(
                f"a batch of {n} tokens has {room} places for {d_sae} features, so that not each gets one; "
                f"use batches of at least {math.ceil(d_sae / self.k)} tokens or at_least = 0"
            )
        return int(room >= d_sae) if self.at_least is None else self.at_least

    def _warn_of_little_room(self, n: int, d_sae: int) -> None:
        room = int(self.k * n + 1e-6)
        if self.at_least is None and d_sae <= room < _ROOM * d_sae:
            warnings.warn(
                f"a batch of {n} tokens has {room} places for {d_sae} features, gives each of them one first and "
                f"leaves {100 * (1 - d_sae / room):.0f} % of them to the Zipf curve; "
                f"batches of {math.ceil(_ROOM * d_sae / self.k)} tokens leave half, at_least = 0 leaves all",
                stacklevel=5,  # whoever called ``train``
            )

    def build(self, *, d_in: int, d_sae: int) -> FeatureChoice:
        return FeatureChoice(self, d_sae=d_sae)


class FeatureChoice(Allocator):
    """Features compete for nothing: each takes its quota of tokens, those that want it most.

    The quotas of a batch sum to k n and none exceeds n. Where a feature has fewer positive affinities than its
    quota, the rest is not spent.

    Buffers:
        share: [d_sae] float64, quotas on any scale.
        theta: [d_sae] float32, running mean of every feature's smallest chosen affinity; it seeds ``freeze``.
        batch: [] int64, tokens that share the quotas of a step; 0 before the first.
        mutual: densities that Mutual Choice gives, or would give, on the same affinities. Quotas that followed
            the densities they produce themselves would confirm themselves for ever.
    """

    config: FeatureChoiceConfig
    couples_rows: ClassVar[bool] = True
    hard_budget: ClassVar[bool] = True
    share: Tensor
    theta: Tensor
    batch: Tensor

    def __init__(self, config: FeatureChoiceConfig, *, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("share", torch.ones(d_sae, dtype=torch.float64))
        self.register_buffer("theta", torch.zeros(d_sae, dtype=torch.float32))
        self.register_buffer("batch", torch.zeros((), dtype=torch.int64))
        self.mutual = Firing(d_sae, config.horizon, config.horizon)

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        n = self._tokens(pre)
        if self._warming_up(clock.step, clock):
            pairs = pre.top_batch(self._budget(n), self.config.scope)
        else:
            pairs = pre.top_columns(whole_quotas(self.quotas(n), clock.step), self.config.scope)
        return Allocation(code_at(pre, pairs))

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        if not self.config.wake or self._warming_up(trace.clock.step, trace.clock):
            return {}
        pre = trace.pre
        taken = torch.bincount(trace.code.indices, minlength=pre.d_sae)
        taken = pre.world.sum(taken) if self.config.scope == "global" else taken
        quota = whole_quotas(self.quotas(self._tokens(pre)), trace.clock.step)
        wanting = ((quota - taken) / quota.clamp(min=1)).clamp(min=0).to(trace.x.dtype)
        return {"wake": -self.config.wake * (wanting * pre.biases()).sum()}

    def quotas(self, n: int) -> Tensor:
        """[d_sae] float64: real quotas of a batch of ``n`` tokens.

        Raises:
            InvalidConfig: the batch is too small for the smallest quota.
        """
        least = self.config.smallest_quota(n, len(self.share))
        return project_quotas(self.share, self._budget(n), n, least=least)

    @torch.no_grad()
    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        clock = trace.clock
        # Of a process, or of all; where each has quotas of its own the mean, for all are to learn the same.
        n = world.count(trace.pre.n, self.batch.device)
        self.batch.fill_(n if self.config.scope == "global" else n // world.size)
        self._remember_smallest(trace.code.detach(), world)
        if self.config.quotas == "uniform":
            return
        warming_up, last = self._warming_up(clock.step, clock), not self._warming_up(clock.step + 1, clock)
        if warming_up:
            self.mutual.update(trace.code, world)
            if last:
                self._refit()
        elif self.revisits(clock):
            self.mutual.update(self._mutual_choice(trace.pre), world)
            self._refit()

    def revisits(self, clock: Clock) -> bool:
        due = clock.step % self.config.refresh_every == 0
        return due and self.config.quotas != "uniform" and not self._warming_up(clock.step, clock)

    def freeze(self) -> FeatureThreshold:
        frozen = FeatureThreshold(FeatureThresholdConfig(k=self.config.k), d_sae=len(self.share))
        frozen.theta.copy_(self.theta)
        n = int(self.batch)
        if not n or self.config.at_least == 1:
            n = max(n, math.ceil(len(self.share) / self.config.k))  # room for every feature
        frozen.density.copy_(self.quotas(n) / n)
        return frozen

    def fold(self, scale: float) -> None:
        self.theta /= scale

    def _tokens(self, pre: Affinities) -> int:
        """How many share the quotas, in this process or in all."""
        return pre.world.count(pre.n, self.batch.device) if self.config.scope == "global" else pre.n

    def _budget(self, n: int) -> int:
        return int(self.config.k * n + 1e-6)  # never over, whatever k is

    def _warming_up(self, step: int, clock: Clock) -> bool:
        return step < self.config.warmup * clock.n_steps

    def _refit(self) -> None:
        """Quotas along the curve through the densities, a feature's place being its rank."""
        firing = int((self.mutual.density > 0).sum())
        if firing >= FEWEST:
            self.share.copy_(fit_zipf(self.mutual.density).at(ranks(self.mutual.density)))
        else:
            warnings.warn(
                f"{firing} features have fired and a curve of quotas takes {FEWEST}; quotas stay what they are "
                f"until {FEWEST - firing} more do, which is looked for every {self.config.refresh_every} steps",
                stacklevel=2,
            )

    def _mutual_choice(self, pre: Affinities) -> Code:
        pairs = pre.top_batch(self._budget(self._tokens(pre)), self.config.scope)
        return Code.from_pairs(*pairs, torch.ones_like(pairs.rows), pre.n, pre.d_sae)

    def _remember_smallest(self, code: Code, world: World) -> None:
        smallest = self.theta.new_full((len(self.theta),), torch.inf)
        smallest.scatter_reduce_(0, code.indices, code.values.to(smallest), "amin")
        chosen = world.sum(smallest.isfinite().to(smallest))
        mean = world.sum(smallest.nan_to_num(posinf=0.0)) / chosen.clamp(min=1)
        moved = torch.where(self.theta > 0, self.theta.lerp(mean, 0.1), mean)
        self.theta.copy_(torch.where(chosen > 0, moved, self.theta))
