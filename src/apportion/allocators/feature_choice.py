"""Feature Choice: every feature takes its quota of the batch's tokens (Ayonrinde 2024, arXiv 2411.02124)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..affinities import Affinities, Scope
from ..clock import END, Clock
from ..code import Code
from ..errors import InvalidConfig, InvalidInput
from ..firing import Firing
from ..ops.zipf import FEWEST, fit_zipf, project_quotas, ranks, whole_quotas
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import Allocation, Allocator, AllocatorConfig, code_at
from .feature_threshold import FeatureThreshold, FeatureThresholdConfig

_FIRINGS = 2
"""Firings that a feature must have seen on average before the curve of all is fitted."""


class FeatureChoiceConfig(AllocatorConfig):
    """Quotas per feature.

    Attributes:
        k: mean features per token.
        quotas: ``zipf``: along the Zipf-Mandelbrot curve of the densities that Mutual Choice would give;
            ``uniform``: the same for all.
        warmup: share of the run, its first, under Mutual Choice.
        refresh_every: steps between looks at what Mutual Choice would do with the same affinities, each of which
            moves ranks and curve; with long gaps the quotas would jump.
        horizon: tokens, of those looked at, that a density remembers.
        at_least: smallest quota of a feature, 0 or 1; None for 1 where the batch has room for it.
        scope: whose tokens share a quota, those of this process or of all.
    """

    kind: Literal["feature_choice"] = "feature_choice"
    k: float = Field(gt=0)
    quotas: Literal["zipf", "uniform"] = "zipf"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    refresh_every: int = Field(default=8, gt=0)
    horizon: int = Field(default=100_000, gt=0)
    at_least: Literal[0, 1] | None = None
    scope: Scope = "rank"

    @property
    def mean_k(self) -> float:
        return self.k

    @classmethod
    def for_k(cls, k: float) -> FeatureChoiceConfig:
        return cls.parse({"k": k}, "feature_choice")

    def build(self, *, d_in: int, d_sae: int) -> FeatureChoice:
        return FeatureChoice(self, d_sae=d_sae)


class FeatureChoice(Allocator):
    """Features compete for nothing: each takes its quota of tokens, those that want it most.

    The quotas of a batch sum to k n and none exceeds n. Where a feature has fewer positive affinities than its
    quota, the rest is not spent.

    Buffers:
        share: [d_sae] float64, quotas on any scale.
        theta: [d_sae] float32, running mean of every feature's smallest chosen affinity; it seeds ``freeze``.
        batch: [] int64, tokens that share the quotas of a step.
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
        self.register_buffer("batch", torch.ones((), dtype=torch.int64))
        self.mutual = Firing(d_sae, config.horizon, config.horizon)

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        n = pre.n * (pre.world.size if self.config.scope == "global" else 1)
        if self._warming_up(clock.step, clock):
            pairs = pre.top_batch(self._budget(n), self.config.scope)
        else:
            pairs = pre.top_columns(whole_quotas(self.quotas(n), clock.step), self.config.scope)
        return Allocation(code_at(pre, pairs))

    def quotas(self, n: int) -> Tensor:
        """[d_sae] float64: real quotas of a batch of ``n`` tokens.

        Raises:
            InvalidInput: the batch is too small for the smallest quota.
        """
        d_sae, budget = len(self.share), self._budget(n)
        if self.config.at_least == 1 and budget < d_sae:
            raise InvalidInput(
                f"a batch of {n} tokens has {budget} places for {d_sae} features, so that not each gets one; "
                f"use batches of at least {math.ceil(d_sae / self.config.k)} tokens or at_least = 0"
            )
        return project_quotas(self.share, budget, n, least=self.config.at_least)

    @torch.no_grad()
    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        shared = self.config.scope == "global"
        peers, clock = world if shared else SOLO, trace.clock
        self.batch.fill_(trace.pre.n * peers.size)
        self._remember_smallest(trace.code.detach())
        if self.config.quotas == "uniform":
            return
        self._check_warmup(trace, peers)
        warming_up, last = self._warming_up(clock.step, clock), not self._warming_up(clock.step + 1, clock)
        if warming_up:
            self.mutual.update(trace.code, peers)
            if last:
                self._refit()
        elif clock.step % self.config.refresh_every == 0:
            self.mutual.update(self._mutual_choice(trace.pre), peers)
            self._refit()

    def freeze(self) -> FeatureThreshold:
        frozen = FeatureThreshold(FeatureThresholdConfig(k=self.config.k), d_sae=len(self.share))
        frozen.theta.copy_(self.theta)
        n = int(self.batch)
        frozen.density.copy_(project_quotas(self.share, self._budget(n), n, least=self.config.at_least) / n)
        return frozen

    def fold(self, scale: float) -> None:
        self.theta /= scale

    def _budget(self, n: int) -> int:
        return int(self.config.k * n + 1e-6)  # never over, whatever k is

    def _warming_up(self, step: int, clock: Clock) -> bool:
        return step < self.config.warmup * clock.n_steps

    def _refit(self) -> None:
        """Quotas along the curve through the densities, a feature's place being its rank."""
        if int((self.mutual.density > 0).sum()) >= FEWEST:
            self.share.copy_(fit_zipf(self.mutual.density).at(ranks(self.mutual.density)))

    def _mutual_choice(self, pre: Affinities) -> Code:
        budget = self._budget(pre.n * (pre.world.size if self.config.scope == "global" else 1))
        pairs = pre.top_batch(budget, self.config.scope)
        return Code.from_pairs(*pairs, torch.ones_like(pairs.rows), pre.n, pre.d_sae)

    def _remember_smallest(self, code: Code) -> None:
        smallest = code.values.new_full((len(self.theta),), torch.inf)
        smallest.scatter_reduce_(0, code.indices, code.values, "amin")
        chosen = smallest.isfinite()
        mean = torch.where(self.theta > 0, self.theta.lerp(smallest.float(), 0.1), smallest.float())
        self.theta.copy_(torch.where(chosen, mean, self.theta))

    def _check_warmup(self, trace: Trace, peers: World) -> None:
        """At the first step, while nothing is lost: will the curve see enough?"""
        if trace.clock.step > 0 or self.config.warmup == 0:
            return
        per_step = trace.pre.n * peers.size
        tokens = per_step * math.ceil(self.config.warmup * trace.clock.n_steps)
        needed = math.ceil(_FIRINGS * len(self.share) / self.config.k)
        if tokens < needed:
            raise InvalidConfig(
                f"a warm-up of {tokens} tokens is too short to fit the densities of {len(self.share)} features; "
                f"it takes {needed} tokens, so train on more or raise warmup = {self.config.warmup:g}"
            )
