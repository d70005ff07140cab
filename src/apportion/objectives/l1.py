"""The L1 norm of the code, relative to the size of the input (AdaptiveK, arXiv 2508.17320)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..firing import Firing
from ..trace import Dictionary, Trace
from .base import Objective, ObjectiveConfig


class L1Config(ObjectiveConfig):
    """An L1 penalty. Rules with a budget need none; AdaptiveK was published with one."""

    kind: Literal["l1"] = "l1"
    weight: float = Field(default=0.005, gt=0)

    def build(self) -> L1:
        return L1(self)


class L1(Objective):
    """weight · mean over tokens of |z|₁ / mean over tokens of |x|₂; absent where every input is zero."""

    name = "l1"

    def __init__(self, config: L1Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor | None:
        size: Tensor = torch.linalg.vector_norm(trace.x, dim=1).sum()
        if not bool(size > 0):
            return None
        total: Tensor = trace.code.values.sum()  # values are not negative
        return self.config.weight * total / size
