"""No transform: the dictionary sees activations as they are."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..code import Undo
from .base import Folded, Transform, TransformConfig


class NoTransformConfig(TransformConfig):
    """Activations as they are."""

    kind: Literal["none"] = "none"

    def build(self, d_in: int) -> Transform:
        return NoTransform()


class NoTransform(Transform):
    """The identity, which costs nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Undo | None]:
        return x, None

    def fold(self, scale: float) -> Folded:
        return Folded(NoTransformConfig(), scale)

    @property
    def per_token(self) -> bool:
        return False
