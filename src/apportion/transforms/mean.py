"""The mean of the first batch, taken off; it folds into the decoder's bias."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..code import Undo
from .base import Folded, Transform, TransformConfig
from .none import NoTransformConfig


class MeanConfig(TransformConfig):
    """Activations less a constant, the mean of the first training batch."""

    kind: Literal["mean"] = "mean"

    def build(self, d_in: int) -> Transform:
        return MeanOff(d_in)


class MeanOff(Transform):
    """x' = x − m, x̂ = x̂' + m.

    Attributes:
        mean: [d_in] m, zero until the first batch.
    """

    mean: Tensor

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_in, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor) -> tuple[Tensor, Undo | None]:
        return x - self.mean.to(x.dtype), None

    def restore(self, x_hat: Tensor, undo: Undo | None) -> Tensor:
        return x_hat + self.mean.to(x_hat.dtype)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        self.mean.copy_(x.double().mean(0))

    def fold(self, scale: float) -> Folded:
        return Folded(NoTransformConfig(), scale, self.mean / scale)

    @property
    def per_token(self) -> bool:
        return False
