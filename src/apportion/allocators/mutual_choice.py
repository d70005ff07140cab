"""Mutual Choice: the k n largest affinities of a batch of n tokens (Ayonrinde 2024, arXiv 2411.02124;
BatchTopK, Bussmann et al. 2024, arXiv 2412.06410)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..affinities import Affinities, Scope
from ..clock import END, Clock
from ..firing import Firing
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import Allocation, Allocator, OneKnob, code_at
from .threshold import Threshold, ThresholdConfig


class MutualChoiceConfig(OneKnob):
    """Top k n per batch.

    Attributes:
        k: mean features per token, any positive number.
        memory: share of the running threshold kept at each step.
        scope: whose tokens share a budget, those of this process or of all.
    """

    kind: Literal["mutual_choice"] = "mutual_choice"
    memory: float = Field(default=0.99, ge=0, lt=1)
    scope: Scope = "rank"

    def build(self, *, d_in: int, d_sae: int) -> MutualChoice:
        return MutualChoice(self)


class MutualChoice(Allocator):
    """Tokens compete for the batch's budget; at inference one threshold decides.

    Buffers:
        theta: [] float32, running mean of the smallest chosen affinity; it seeds the threshold of ``freeze``
            and chooses nothing in training.
        seen: [] int64, steps that it has seen.
    """

    config: MutualChoiceConfig
    couples_rows: ClassVar[bool] = True
    hard_budget: ClassVar[bool] = True
    theta: Tensor
    seen: Tensor

    def __init__(self, config: MutualChoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("theta", torch.zeros((), dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        n = pre.world.count(pre.n, self.theta.device) if self.config.scope == "global" else pre.n
        budget = int(self.config.k * n + 1e-6)  # never over, whatever k is
        return Allocation(code_at(pre, pre.top_batch(budget, self.config.scope)))

    @torch.no_grad()
    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        chosen = trace.code.values.float()
        own = torch.stack([chosen.min(), chosen.new_ones(())]) if len(chosen) else chosen.new_zeros(2)
        # A process that chose nothing asks all the same, or the others would wait for it.
        total, processes = world.sum(own)
        if not processes:
            return
        smallest = total / processes
        memory = self.config.memory if int(self.seen) else 0.0
        self.theta.mul_(memory).add_(smallest, alpha=1 - memory)
        self.seen += 1

    def freeze(self) -> Threshold:
        frozen = Threshold(ThresholdConfig(k=self.config.k))
        frozen.theta.copy_(self.theta)
        return frozen

    def fold(self, scale: float) -> None:
        self.theta /= scale
