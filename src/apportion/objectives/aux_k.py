"""Dead features reconstruct what the living ones left over (Gao et al. 2024, arXiv 2406.04093, A.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ..firing import Firing
from ..trace import Dictionary, Trace
from .base import Objective, ObjectiveConfig
from .residual import unexplained


class AuxKConfig(ObjectiveConfig):
    """aux-k.

    Attributes:
        weight: coefficient of the normalised loss.
        k_aux: dead features per token; None for d_in / 2.
        rows: share of the batch's tokens that it is computed on; 1 is exact.
    """

    kind: Literal["aux_k"] = "aux_k"
    weight: float = Field(default=1 / 32, gt=0)
    k_aux: int | None = Field(default=None, gt=0)
    rows: float = Field(default=0.25, gt=0, le=1)

    def build(self) -> AuxK:
        return AuxK(self)


class AuxK(Objective):
    """mean|e - e_hat|^2 / mean|e - mean e|^2 for the residual e, times the weight.

    e_hat is decoded, without ``b_dec``, from each token's ``k_aux`` largest affinities among the dead features.
    Absent when nothing is dead or the residual does not vary.
    """

    name = "aux_k"

    def __init__(self, config: AuxKConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor | None:
        dead = firing.dead().to(trace.x.dtype)
        loss = unexplained(trace, dictionary, dead, self.config.k_aux, self.config.rows)
        return None if loss is None else self.config.weight * loss
