"""Every token's own mean taken off, and its deviation brought to one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ..code import Undo
from .base import Folded, Transform, TransformConfig


class LayerNormConfig(TransformConfig):
    """What SAELens calls ``layer_norm`` and OpenAI's SAEs are trained on.

    Attributes:
        eps: added to a token's deviation, in the unit of the activations.
    """

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = Field(default=1e-5, gt=0)

    def build(self, d_in: int) -> Transform:
        return LayerNorm(self)


class LayerNorm(Transform):
    """x' = (x − μ) / (σ + ε) and x̂ = x̂' · σ + μ, where μ is a token's mean over d_in and σ its deviation.

    The divisor of σ is d_in − 1, as in SAELens. Both are taken in float64, and ε is left out of the way back, so
    that what SAELens saved means the same here.
    """

    def __init__(self, config: LayerNormConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> tuple[Tensor, Undo | None]:
        wide = x.double()
        mean, deviation = wide.mean(1), wide.std(1)
        changed = (wide - mean[:, None]) / (deviation + self.config.eps)[:, None]
        return changed.to(x.dtype), Undo(deviation.to(x.dtype), mean.to(x.dtype))

    def fold(self, scale: float) -> Folded:
        return Folded(self.config.model_copy(update={"eps": self.config.eps / scale}), 1.0)

    @property
    def per_token(self) -> bool:
        return True
