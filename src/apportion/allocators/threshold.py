"""Affinities above a threshold: the inference rule of everything that competes over a batch."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from ..errors import InvalidInput
from .base import Allocation, Allocator, AllocatorConfig, Calibration, code_at, measured


class ThresholdConfig(AllocatorConfig):
    """One threshold for all features, fitted to give ``k`` features per token."""

    inference_only: ClassVar[bool] = True
    kind: Literal["threshold"] = "threshold"
    k: float = Field(gt=0)

    @property
    def mean_k(self) -> float:
        return self.k

    @classmethod
    def for_k(cls, k: float) -> ThresholdConfig:
        return cls.parse({"k": k}, "threshold")

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
        fitted = Threshold(ThresholdConfig(k=k))
        theta, above, tokens = _fit(survey, k)
        fitted.theta.copy_(theta)
        if float(theta) > 0:
            return Calibration(fitted, k, above / tokens, tokens, short=0)
        return measured(fitted, survey, k)  # all positive affinities are too few: count who is short

    def fold(self, scale: float) -> None:
        self.theta /= scale


def _fit(survey: Survey, k: float) -> tuple[Tensor, int, int]:
    """The threshold midway between affinity number round(k N) and the next, what exceeds it, and N.

    Each block hands in several times its share of largest affinities. The cut among them is the true one if it
    is no lower than what any block held back; else the survey is run again with more.
    """
    surplus = 3.0
    while True:
        kept: list[Tensor] = []
        floor, tokens = 0.0, 0
        for pre, _ in survey():
            share = int(surplus * k * pre.n) + 1
            values = pre.at(pre.top_batch(share)).float()
            tokens += pre.n
            kept.append(values)
            if len(values) >= share:
                floor = max(floor, float(values.min()))
        if tokens == 0:
            raise InvalidInput("there are no tokens to calibrate on; hold out more documents")
        values, m = torch.cat(kept), round(k * tokens)
        if len(values) <= m and floor == 0.0:  # fewer positive affinities than the budget: take them all
            return values.new_zeros(()), len(values), tokens
        if len(values) > m:
            theta = _between(values.topk(m + 1).values, m)
            if float(theta) >= floor:
                return theta, int((values > theta).sum()), tokens
        surplus *= 2


def _between(top: Tensor, m: int) -> Tensor:
    """[]: what the first ``m`` of the falling values ``top [m + 1]`` exceed and the last does not."""
    if m == 0:
        return top[0]
    middle = top[m - 1 :].double().mean().float()
    # Strictly below the last one in, also where the two are neighbours in float32.
    return torch.minimum(middle, torch.nextafter(top[m - 1], middle.new_zeros(())))
