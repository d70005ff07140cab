"""Every token brought to one length."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..code import Undo
from .base import Folded, Transform, TransformConfig


class UnitConfig(TransformConfig):
    """What SAELens calls ``constant_norm_rescale``."""

    kind: Literal["unit"] = "unit"

    def build(self, d_in: int) -> Transform:
        return Unit()


class Unit(Transform):
    """x' = x · √d_in / ‖x‖ and x̂ = x̂' · ‖x‖ / √d_in; a token of length zero stays zero. Taken in float64."""

    def forward(self, x: Tensor) -> tuple[Tensor, Undo | None]:
        wide = x.double()
        gain = torch.linalg.vector_norm(wide, dim=1) / math.sqrt(x.shape[1])
        changed = wide / torch.where(gain > 0, gain, 1.0)[:, None]
        return changed.to(x.dtype), Undo(gain.to(x.dtype), torch.zeros_like(gain, dtype=x.dtype))

    def fold(self, scale: float) -> Folded:
        return Folded(UnitConfig(), 1.0)

    @property
    def per_token(self) -> bool:
        return True
