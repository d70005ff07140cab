"""Learned thresholds, one per feature, moved together to meet k: the inference rule of JumpReLU."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..affinities import Affinities, Ordered, Pairs, Survey
from ..clock import END, Clock
from .base import Allocation, Allocator, Calibration, OneKnob, code_at, measured
from .one_cut import Gauge, fit_cut

_LEAST = 1e-6
"""Smallest factor: thresholds stay above zero."""


class ScaledThresholdsConfig(OneKnob):
    """Thresholds that are given, times one factor that gives ``k`` features per token."""

    inference_only: ClassVar[bool] = True
    kind: Literal["scaled_thresholds"] = "scaled_thresholds"

    def build(self, *, d_in: int, d_sae: int) -> ScaledThresholds:
        return ScaledThresholds(self, d_sae=d_sae)


class ScaledThresholds(Allocator):
    """All affinities strictly above their feature's ``theta`` ([d_sae] float32, above 0)."""

    config: ScaledThresholdsConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False
    theta: Tensor

    def __init__(self, config: ScaledThresholdsConfig, *, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("theta", torch.ones(d_sae, dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        return Allocation(code_at(pre, pre.above(self.theta)))

    def order(self, pre: Affinities, x: Tensor, k: int) -> Ordered:
        return pre.ordered(k, self.theta)

    def freeze(self) -> ScaledThresholds:
        frozen = ScaledThresholds(self.config, d_sae=len(self.theta))
        frozen.load_state_dict(self.state_dict())
        return frozen

    @torch.no_grad()
    def calibrate(self, survey: Survey, k: float) -> Calibration:
        """The factor at which exactly round(k N) affinities of the survey's N tokens exceed (ties apart)."""
        fitted = ScaledThresholds(ScaledThresholdsConfig(k=k), d_sae=len(self.theta)).to(self.theta.device)
        cut = fit_cut(survey, k, Gauge(self._largest, unit=self.theta))
        fitted.theta.copy_(self.theta.double() * max(cut.value, _LEAST))
        if cut.value > 0:
            return Calibration(fitted, k, cut.fitted / cut.tokens, cut.tokens, short=0, unseen=cut.unseen)
        return measured(fitted, survey, k)

    def fold(self, scale: float) -> None:
        self.theta /= scale

    def _largest(self, pre: Affinities, m: int) -> Pairs:
        """The pairs of the largest ratios of affinity to threshold."""
        pairs = pre.above(0.5 * self.theta)
        if len(pairs.rows) < m:
            pairs = pre.above(0.0)
        ratios = pre.at(pairs).float() / self.theta[pairs.features]
        chosen = ratios.topk(min(m, len(ratios))).indices
        return Pairs(pairs.rows[chosen], pairs.features[chosen])
