"""The squared error of the reconstruction."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..firing import Firing
from ..trace import Dictionary, Trace
from .base import Objective, ObjectiveConfig


class ReconstructionConfig(ObjectiveConfig):
    """Squared error, summed over dimensions, averaged over tokens."""

    auxiliary: ClassVar[bool] = False
    kind: Literal["reconstruction"] = "reconstruction"
    weight: float = Field(default=1.0, gt=0)

    def build(self) -> Reconstruction:
        return Reconstruction(self)


class Reconstruction(Objective):
    """mean over tokens of |x - x_hat|^2."""

    name = "reconstruction"

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor:
        # One kernel without temporaries; the mean is over tokens, not over entries.
        return self.config.weight / len(trace.x) * F.mse_loss(trace.x_hat, trace.x, reduction="sum")
