"""The price of sparsity, steered so that a rule without a hard budget ends at its k."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..clock import END, Clock
from ..errors import InvalidConfig
from ..firing import Firing
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import Objective, ObjectiveConfig

AIM = 1.01
"""Over k: what L0 is led to. A little above, so that a threshold of zero or more is enough for exactly k."""


_EARLY = 50
"""Steps before which a run counts as no younger."""

_LED = 97
"""Steps that leading L0 takes at least: dictionaries follow no faster, and what outruns them overshoots."""
_MOST = 0.65
"""Share of a run that it takes at most, so that there is time to settle."""

_CAUTIOUS = 0.5
"""Least share of the controller's gains in runs too short to lead L0 in ``reach`` of them."""


class SparsityConfig(ObjectiveConfig):
    """A price times what the rule pays for the features that fire, in place of a coefficient to be searched for.

    The logarithm of the price follows that of L0 over where it should be: in proportion, and in sum over steps.

    Attributes:
        start: the price before anything has been measured.
        bounds: of the price, as factors of ``start``.
        reach: share of the run over which L0 is led, evenly in its logarithm, from where it starts to k. Runs of
            which that share is less than 97 steps lead it for 97, or 65 % of them, with smaller gains.
        proportional: of the logarithms.
        integral: likewise, per share by which the run has grown: with fixed steps the sum would swing around k
            more and more slowly but no less, since dictionaries answer ever more slowly.
        smooth: steps over which L0 is averaged.
    """

    auxiliary: ClassVar[bool] = False
    prices: ClassVar[bool] = True
    kind: Literal["sparsity"] = "sparsity"
    start: float = Field(default=1.0, gt=0)
    bounds: tuple[float, float] = (1e-6, 1e6)
    reach: float = Field(default=0.2, gt=0, le=1)
    proportional: float = Field(default=2.0, ge=0)
    integral: float = Field(default=20.0, ge=0)
    smooth: float = Field(default=4.0, ge=1)

    @model_validator(mode="after")
    def _usable(self) -> SparsityConfig:
        if not 0 < self.bounds[0] <= 1 <= self.bounds[1] < math.inf:
            raise ValueError(f"bounds = {self.bounds} must be positive factors around 1; give 1e-6,1e6, say")
        return self

    def build(self) -> Sparsity:
        return Sparsity(self)


class Sparsity(Objective):
    """price · cost.

    Buffers:
        first, l0: [] float64, features per token in the first step, and lately; 0 before there is one.
        summed: [] float64, the integral, a part of the price's logarithm.
        over: [] float64, ``l0`` over k.
    """

    name = "sparsity"
    first: Tensor
    l0: Tensor
    summed: Tensor
    over: Tensor

    def __init__(self, config: SparsityConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("first", "l0", "summed", "over"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor:
        if trace.penalty is None:
            raise InvalidConfig("'sparsity' sets a price and this rule pays none; leave that objective out")
        return self.price(trace.clock, trace.penalty.k) * trace.penalty.cost

    def price(self, clock: Clock, k: float) -> float:
        """What a unit of the rule's cost costs at this step."""
        low, high = (math.log(bound) for bound in self.config.bounds)
        return self.config.start * math.exp(min(max(self._asked(clock, k), low), high))

    @torch.no_grad()
    def observe(self, trace: Trace, world: World = SOLO) -> None:
        assert trace.penalty is not None
        k, code = trace.penalty.k, trace.code
        # Where the tokens are: a collective of cards reduces nothing that lies on the CPU.
        counts = torch.tensor([code.nnz, code.n], dtype=torch.float64, device=trace.x.device)
        nnz, n = world.sum(counts).tolist()
        l0 = max(nnz / max(n, 1), 1e-3)
        if not float(self.first):
            self.first.fill_(l0)
            self.l0.fill_(l0)
        # Of the logarithm: a burst of features must not look like ten.
        self.l0.copy_(self.l0 * (l0 / self.l0) ** (1 / self.config.smooth))
        self.over.copy_(self.l0 / k)
        integral = self.config.integral * self._caution(trace.clock)
        self._add(integral / (trace.clock.step + _EARLY) * self._excess(trace.clock, k))

    def report(self, clock: Clock = END) -> Mapping[str, Any]:
        if not float(self.l0):
            return {}
        k = round(float(self.l0 / self.over), 9)
        low, high = (math.log(bound) for bound in self.config.bounds)
        at_bound = not low < self._asked(clock, k) < high
        return {"price": self.price(clock, k), "l0": float(self.l0), "k": k, "at_bound": at_bound}

    def target(self, clock: Clock, k: float) -> float:
        """Where L0 should be at this step."""
        led = min(clock.progress / self.reach(clock.n_steps), 1.0)
        return math.exp((1 - led) * math.log(max(float(self.first), AIM * k)) + led * math.log(AIM * k))

    def reach(self, n_steps: int) -> float:
        """Share of a run of so many steps over which L0 is led; a short run takes as many steps for it."""
        return max(self.config.reach, min(_LED / n_steps, _MOST))

    def _asked(self, clock: Clock, k: float) -> float:
        """The logarithm of the price over its start, bounds apart."""
        return float(self.summed) + self.config.proportional * self._caution(clock) * self._excess(clock, k)

    def _caution(self, clock: Clock) -> float:
        """What ``proportional`` and ``integral`` are multiplied by, 1 unless the run is too short for its reach.

        A swing takes as many steps in a short run as in a long one, and there is no time to wait for its end.
        """
        if clock.n_steps <= 1:  # ``END``, which says nothing of the run
            return 1.0
        return min(max(clock.n_steps * self.config.reach / _LED, _CAUTIOUS), 1.0)

    def _excess(self, clock: Clock, k: float) -> float:
        return math.log(float(self.l0) / self.target(clock, k)) if float(self.l0) else 0.0

    def _add(self, change: float) -> None:
        """Go on summing, unless that would only wind up against a bound."""
        low, high = (math.log(bound) for bound in self.config.bounds)
        self.summed.copy_((self.summed + change).clamp(low, high))
