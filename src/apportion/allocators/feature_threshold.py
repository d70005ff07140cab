"""A threshold for every feature: the inference rule where features, not tokens, have quotas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..affinities import Affinities, Ordered, Survey
from ..clock import END, Clock
from .base import Allocation, Allocator, Calibration, OneKnob, code_at, measured
from .feature_fit import Around, fit


class FeatureThresholdConfig(OneKnob):
    """Thresholds fitted to each feature's density, and then together to give ``k`` features per token."""

    inference_only: ClassVar[bool] = True
    kind: Literal["feature_threshold"] = "feature_threshold"

    def build(self, *, d_in: int, d_sae: int) -> FeatureThreshold:
        return FeatureThreshold(self, d_sae=d_sae)


class FeatureThreshold(Allocator):
    """All affinities strictly above their feature's threshold.

    Buffers:
        theta: [d_sae] float32, at least 0.
        density: [d_sae] float32, the share of tokens that each feature is meant to fire on; sums to k, unless
            some would have to be above 1.
    """

    config: FeatureThresholdConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False
    theta: Tensor
    density: Tensor

    def __init__(self, config: FeatureThresholdConfig, *, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("theta", torch.zeros(d_sae, dtype=torch.float32))
        self.register_buffer("density", torch.full((d_sae,), config.k / d_sae, dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        return Allocation(code_at(pre, pre.above(self.theta)))

    def order(self, pre: Affinities, x: Tensor, k: int) -> Ordered:
        return pre.ordered(k, self.theta)

    def freeze(self) -> FeatureThreshold:
        frozen = FeatureThreshold(self.config, d_sae=len(self.theta))
        frozen.load_state_dict(self.state_dict())
        return frozen

    @torch.no_grad()
    def calibrate(self, survey: Survey, k: float) -> Calibration:
        """The (1 - density) quantile of each feature's affinities, times the one factor that gives ``k``.

        The factor is fitted to give ``k`` on tokens that are not fitted on, so that fewer fire on those that are.
        """
        fitted = FeatureThreshold(FeatureThresholdConfig(k=k), d_sae=len(self.theta)).to(self.density.device)
        fitted.density.copy_((self.density * (k / self.density.sum())).clamp(max=1.0))
        found = fit(survey, fitted.density.double(), k)
        fitted.theta.copy_(found.theta)
        around = Around(fitted.theta)

        def watched() -> Iterator[tuple[Affinities, Tensor]]:
            for pre, x in survey():
                around.add(pre)
                yield pre, x

        spent = measured(fitted, watched, k)
        fitted.theta.copy_(around.middle())  # no value is crossed
        return replace(spent, unseen=found.unseen)

    def fold(self, scale: float) -> None:
        self.theta /= scale
