"""Everything above zero, at a price: ReLU with an L1 penalty, or with an L_p one whose p is annealed."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from ..affinities import Affinities
from ..clock import END, Clock
from ..config import Open
from ..errors import InvalidConfig
from ..firing import Firing
from ..schedules import Constant, Schedule
from ..trace import Dictionary, Penalty, Trace
from ..world import SOLO, World
from .base import Allocation, Allocator, OneKnob, code_of
from .threshold import Threshold, ThresholdConfig

_FLOOR = 1e-3
"""Of the mean value: smaller ones count as this, or the gradient of z^p would have no bound."""


class ReLUConfig(OneKnob):
    """A penalty on values.

    Attributes:
        k: mean features per token that the price is to bring about.
        p: exponent of the penalty, above 0; 1 is L1. P-anneal (arXiv 2408.00113) lowers it to 0.2.
    """

    penalised: ClassVar[bool] = True
    kind: Literal["relu"] = "relu"
    p: Open[Schedule] = Constant(value=1.0)

    @model_validator(mode="after")
    def _above_zero(self) -> ReLUConfig:
        for when, clock in (("start", Clock(0, 1)), ("end", END)):
            if not self.p(clock) > 0:
                raise ValueError(
                    f"p = {self.p(clock):g} at the {when} of a run, expected above 0; give 0.2 or more, say"
                )
        return self

    def build(self, *, d_in: int, d_sae: int) -> ReLU:
        return ReLU(self)


class ReLU(Allocator):
    """z = ReLU(pi), held to k by the price of sum z^p (times the norm of the direction, which is 1).

    Buffers:
        steady: [] float32; the penalty is multiplied by it, so that it does not move when p does.
    """

    config: ReLUConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False
    steady: Tensor

    def __init__(self, config: ReLUConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("steady", torch.ones((), dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        p = self.config.p(clock)
        if not p > 0:
            raise InvalidConfig(f"p = {p:g} at step {clock.step}, expected above 0; change its schedule")
        pairs = pre.fired(0.0)
        values = pre.at(pairs).relu()
        cost = self.steady * powers(values, p) / max(pre.n, 1)
        return Allocation(code_of(pre, pairs, values), penalty=Penalty(cost, self.config.k))

    @torch.no_grad()
    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        now = trace.clock
        p, after = self.config.p(now), self.config.p(Clock(now.step + 1, now.n_steps, now.tokens + trace.code.n))
        if p == after:
            return
        values = trace.code.values.detach()
        before, then = world.sum(torch.stack([powers(values, p), powers(values, after)]))
        if bool(before > 0) and bool(then > 0):
            self.steady.mul_(before / then)

    def freeze(self) -> Threshold:
        return Threshold(ThresholdConfig(k=self.config.k, lifts=True))


def powers(values: Tensor, p: float) -> Tensor:
    """[]: the sum of ``z^p`` over positive values, those below a thousandth of their mean counted as that.

    Floored values keep the gradient of the floor, so that they go on falling to zero.
    """
    if p == 1:
        return values.sum()
    with torch.no_grad():
        n = (values > 0).sum().clamp(min=1)
        base = values.clamp(min=(_FLOOR * values.sum() / n).clamp(min=torch.finfo(values.dtype).tiny))
        slope = p * base.pow(p - 1)
        total = (base * slope / p * (values > 0)).sum()
    linear = (slope * values).sum()
    return total + linear - linear.detach()
