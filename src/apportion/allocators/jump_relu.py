"""JumpReLU: a learned threshold per feature, held to k by the price of L0 (arXiv 2407.14435)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..affinities import Affinities, Ordered
from ..clock import END, Clock
from ..ops.ste import jump
from ..trace import Penalty
from .base import Allocation, Allocator, OneKnob, code_of
from .scaled_thresholds import ScaledThresholds, ScaledThresholdsConfig


class JumpReLUConfig(OneKnob):
    """Thresholds and the window that they are learned in.

    Attributes:
        k: mean features per token that the price is to bring about.
        theta: what thresholds start at, for activations of mean squared norm 1.
        width: of the window, likewise.
        pace: how many times faster than other parameters the logarithm of a threshold learns. Published: 1,
            with runs of 100,000 steps and more.
    """

    penalised: ClassVar[bool] = True
    kind: Literal["jump_relu"] = "jump_relu"
    theta: float = Field(default=1e-3, gt=0)
    width: float = Field(default=1e-3, gt=0)
    pace: float = Field(default=1.0, gt=0)

    def build(self, *, d_in: int, d_sae: int) -> JumpReLU:
        return JumpReLU(self, d_in=d_in, d_sae=d_sae)


class JumpReLU(Allocator):
    """z = pi · 1[pi > theta]; the price is of L0. Both reach theta through a window around it.

    Parameters:
        log_theta: [d_sae] float32, over ``pace``.
    """

    config: JumpReLUConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False

    def __init__(self, config: JumpReLUConfig, *, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        # Scaled activations have a mean squared norm near d_in.
        self.width, start = config.width * math.sqrt(d_in), math.log(config.theta * math.sqrt(d_in))
        self.log_theta = nn.Parameter(torch.full((d_sae,), start / config.pace, dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        theta = self.theta()
        pairs = pre.fired((theta - self.width / 2).detach())
        values, count = jump(pre.at(pairs), pairs.spread(theta), self.width)
        return Allocation(code_of(pre, pairs, values), penalty=Penalty(count / max(pre.n, 1), self.config.k))

    def order(self, pre: Affinities, x: Tensor, k: int) -> Ordered:
        return pre.ordered(k, self.theta().detach())

    def theta(self) -> Tensor:
        """[d_sae] the thresholds."""
        return (self.config.pace * self.log_theta).exp()

    def freeze(self) -> ScaledThresholds:
        frozen = ScaledThresholds(ScaledThresholdsConfig(k=self.config.k), d_sae=len(self.log_theta))
        frozen.theta.copy_(self.theta().detach())
        return frozen

    @torch.no_grad()
    def fold(self, scale: float) -> None:
        self.log_theta.sub_(math.log(scale) / self.config.pace)
        self.width /= scale
