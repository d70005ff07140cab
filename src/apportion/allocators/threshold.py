"""Affinities above a threshold: the inference rule of everything that competes over a batch."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from .base import Allocation, Allocator, Calibration, OneKnob, code_at, measured
from .one_cut import Gauge, fit_cut


class ThresholdConfig(OneKnob):
    """One threshold for all features, fitted to give ``k`` features per token.

    Attributes:
        lifts: where positive affinities are a few per cent too few for k, biases may be raised until they are
            not (``calibrate.fit``): it comes from a rule that lets all of them fire in training.
    """

    inference_only: ClassVar[bool] = True
    kind: Literal["threshold"] = "threshold"
    lifts: bool = False

    def build(self, *, d_in: int, d_sae: int) -> Threshold:
        return Threshold(self)


class Threshold(Allocator):
    """All affinities strictly above ``theta`` ([] float32, at least 0)."""

    config: ThresholdConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False
    theta: Tensor

    def __init__(self, config: ThresholdConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("theta", torch.zeros((), dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        return Allocation(code_at(pre, pre.above(self.theta)))

    def freeze(self) -> Threshold:
        frozen = Threshold(self.config)
        frozen.theta.copy_(self.theta)
        return frozen

    @torch.no_grad()
    def calibrate(self, survey: Survey, k: float) -> Calibration:
        """The threshold that exactly round(k N) affinities of the survey's N tokens exceed (ties apart)."""
        fitted = Threshold(self.config.model_copy(update={"k": k}))
        cut = fit_cut(survey, k, Gauge(lambda pre, m: pre.top_batch(m)))
        fitted.theta.fill_(cut.value)
        if cut.value > 0:
            return Calibration(fitted, k, cut.fitted / cut.tokens, cut.tokens, short=0, unseen=cut.unseen)
        return measured(fitted, survey, k)  # all positive affinities are too few: count who is short

    def lowered(self, most: float) -> tuple[Threshold, float] | None:
        if not self.config.lifts:
            return None
        other, by = self.freeze(), min(float(self.theta), most)
        other.theta -= by
        return other, by

    def fold(self, scale: float) -> None:
        self.theta /= scale
