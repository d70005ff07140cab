"""A rule that the package does not know: top k with some of it dropped at random while training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from apportion import END, Affinities, Allocation, Allocator, AllocatorConfig, Clock, Code


class DropChoiceConfig(AllocatorConfig):
    """Top k per token; ``drop`` is the share left out at the start, falling to none."""

    kind: Literal["drop_choice"] = "drop_choice"
    k: int = Field(gt=0)
    drop: float = Field(default=0.3, ge=0, lt=1)

    @property
    def mean_k(self) -> float:
        return self.k

    @classmethod
    def for_k(cls, k: float) -> DropChoiceConfig:
        return cls.parse({"k": k}, "drop_choice")

    def build(self, *, d_in: int, d_sae: int) -> DropChoice:
        return DropChoice(self)


class DropChoice(Allocator):
    """Values are affinities times a learned gain; ``level`` is the running mean of what was chosen."""

    config: DropChoiceConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = True
    level: Tensor

    def __init__(self, config: DropChoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.log_gain = nn.Parameter(torch.zeros(()))
        self.register_buffer("level", torch.zeros(()))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        pairs = pre.top_rows(torch.full((pre.n,), self.config.k, device=x.device))
        rate = self.config.drop * (1 - clock.progress)
        if rate > 0:
            pairs = pairs.take(torch.rand(len(pairs.rows), device=x.device) >= rate)
        values = pre.at(pairs) * self.log_gain.exp()
        code = Code.from_pairs(pairs.rows, pairs.features, values, pre.n, pre.d_sae)
        return Allocation(code, {"gain": self.log_gain.detach().exp()})

    def observe(self, trace, dictionary, firing, world=None) -> None:
        if len(trace.code.values):
            self.level.lerp_(trace.code.values.detach().mean(), 0.1)

    def freeze(self) -> DropChoice:
        frozen = DropChoice(self.config)
        frozen.load_state_dict(self.state_dict())
        return frozen

    def fold(self, scale: float) -> None:
        self.level /= scale
