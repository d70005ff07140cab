"""The same k for every token."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from .base import Budget, BudgetConfig


class ConstantConfig(BudgetConfig):
    """A whole number of features per token."""

    kind: Literal["constant"] = "constant"
    k: int = Field(gt=0)

    @property
    def mean_k(self) -> float:
        return self.k

    def build(self, *, d_in: int, d_sae: int) -> Constant:
        return Constant(self)


class Constant(Budget):
    """k features for every token."""

    config: ConstantConfig

    def __init__(self, config: ConstantConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Tensor:
        return torch.full((pre.n,), float(self.config.k), dtype=torch.float32, device=x.device)

    def solve(self, survey: Survey, k: float) -> Constant:
        return Constant(ConstantConfig(k=round(k)))
