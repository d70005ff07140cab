"""Underused features reconstruct what is left over, the more the further they lag behind their place on the curve
of densities (aux_zipf_loss, Ayonrinde 2024, arXiv 2411.02124)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..firing import Firing
from ..ops.zipf import FEWEST, fit_zipf, ranks
from ..trace import Dictionary, Trace
from .base import Objective, ObjectiveConfig
from .residual import unexplained


class AuxZipfConfig(ObjectiveConfig):
    """aux-zipf.

    Attributes:
        weight: coefficient of the normalised loss.
        tau: share of its density on the curve below which a feature counts as underused; 0 is aux-k.
        k_aux: underused features per token; None for d_in / 2.
        rows: share of the batch's tokens that it is computed on; 1 is exact.
    """

    kind: Literal["aux_zipf"] = "aux_zipf"
    weight: float = Field(default=1 / 32, gt=0)
    tau: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    k_aux: int | None = Field(default=None, gt=0)
    rows: float = Field(default=0.25, gt=0, le=1)

    def build(self) -> AuxZipf:
        return AuxZipf(self)


class AuxZipf(Objective):
    """mean|e - e_hat|^2 / mean|e - mean e|^2 for the residual e, times the weight.

    Feature f falls short by u_f = max(0, 1 - density_f / (tau c_f)), with c_f the fitted curve at its rank. e_hat
    is decoded, without ``b_dec``, from u_f times the affinity, over each token's ``k_aux`` largest such products.
    Absent when no feature lags behind, too few fire for a fit, or the residual does not vary.
    """

    name = "aux_zipf"

    def __init__(self, config: AuxZipfConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor | None:
        u = shortfall(firing, self.config.tau).to(trace.x.dtype)
        loss = unexplained(trace, dictionary, u, self.config.k_aux, self.config.rows)
        return None if loss is None else self.config.weight * loss


def shortfall(firing: Firing, tau: float) -> Tensor:
    """[d_sae] in [0, 1]: how far each feature lags behind; with ``tau`` 0 whether it is dead."""
    if tau == 0:
        return firing.dead().float()
    density = firing.density
    if int((density > 0).sum()) < FEWEST:
        return torch.zeros_like(density)
    due = tau * fit_zipf(density).at(ranks(density))
    return (1 - density / due).clamp(min=0).float()
