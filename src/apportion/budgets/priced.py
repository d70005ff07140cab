"""A k that follows the oracle's, learned in the run from the dictionary's own errors: no texts, no scores."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from ..firing import Firing
from ..ops.profile import FLOOR, N_PROFILE, profile
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import BoundedConfig, Budget, meet, rounded
from .labels import LabelsConfig, Regression, best_counts, first_features, some_rows

_HALVINGS = 34
"""Of the offset's interval in training; calibration goes on to the last digit."""
_PULL = 0.1
"""Share of the miss of a step's mean k, in logarithms, that the offset makes good between labels."""
_FOLLOW = 0.3
"""Share of the way that the level goes to that of new labels."""


class PricedConfig(BoundedConfig):
    """What k is read from, and how that is learned.

    Attributes:
        reads: the activation (``x``), the shape of its row of affinities (``profile``), or both.
        labels: how it learns in training; None when it has learned.
    """

    kind: Literal["priced"] = "priced"
    reads: Literal["x", "profile", "both"] = "both"
    labels: LabelsConfig | None = LabelsConfig()

    def build(self, *, d_in: int, d_sae: int) -> Priced:
        return Priced(self, d_in=d_in, d_sae=d_sae)


class Priced(Budget):
    """exp(readings · weight + offset), within its bounds; every token starts at k.

    The weight is the ridge regression of log k* on recent labelled tokens. k* is the oracle's: the k up to k_max
    that minimises e(k) + price k, e(k) being the token's squared error with its first k features, at the price at
    which the mean k* of the tokens labelled together is k.

    Buffers:
        weight: [width] float32; readings are d_in of the activation, then 11 of the profile, or one of the two.
        offset: [] float32.
        level: [] float32, the affinity that k per token exceed, which the profile is relative to; 0 before the
            first labels.
    """

    config: PricedConfig
    weight: Tensor
    offset: Tensor
    level: Tensor

    def __init__(self, config: PricedConfig, *, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_sae = d_in, d_sae
        low, high = config.bounds
        self.least, self.most = low, min(high, d_sae)
        self.direct = 0 if config.reads == "profile" else d_in
        width = self.direct + (0 if config.reads == "x" else N_PROFILE + 1)
        self.register_buffer("weight", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("offset", torch.tensor(math.log(config.k), dtype=torch.float32))
        self.register_buffer("level", torch.zeros((), dtype=torch.float32))
        self.regression = Regression(config.labels, width) if config.labels else None

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Tensor:
        return self._k(self.score(pre, x) + self.offset.double())

    def score(self, pre: Affinities, x: Tensor) -> Tensor:
        """[n] float64: log k up to the offset."""
        if not float(self.level):
            return torch.zeros(pre.n, dtype=torch.float64, device=x.device)
        return self.readings(pre, x) @ self.weight.double()

    @torch.no_grad()
    def readings(self, pre: Affinities, x: Tensor) -> Tensor:
        """[n, width] float64, what k is read from, once there is a level."""
        # In float64: a k near a half must not depend on the batch, nor on autocast.
        x, parts = x.double(), []
        if self.config.reads != "profile":
            parts.append(x)
        if self.config.reads != "x":
            pairs = pre.above(FLOOR * self.level)
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True) / self.level.double()
            parts += [profile(pairs, pre.at(pairs), pre.n, self.level), (length + 1).log()]
        return torch.cat(parts, 1)

    @torch.no_grad()
    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        if self.regression is None:
            return
        if self.regression.due():
            self._learn(self.regression, trace, dictionary, world)
        else:
            spent = rounded(trace.notes["k"], self.d_sae).double().sum()
            spent, n = world.sum(torch.stack([spent, torch.full_like(spent, trace.pre.n)]))
            self.offset.add_(_PULL * torch.log(self.config.k * n.clamp(min=1) / spent.clamp(min=1)))

    def revisits(self, clock: Clock) -> bool:
        return self.regression is not None and self.regression.learns_next()

    @torch.no_grad()
    def solve(self, survey: Survey, k: float) -> Priced:
        low, high = self.config.bounds
        changes = {"k": k, "k_min": low, "k_max": high, "labels": None}
        solved = Priced(self.config.model_copy(update=changes), d_in=self.d_in, d_sae=self.d_sae)
        solved.to(device=self.weight.device)
        solved.weight.copy_(self.weight)
        solved.level.copy_(self.level)
        solved._meet(torch.cat([solved.score(pre, x) for pre, x in survey()]), k)
        return solved

    @torch.no_grad()
    def fold(self, scale: float) -> None:
        self.weight[: self.direct].mul_(scale)
        self.level.div_(scale)
        if self.regression is not None:
            self.regression.fold(scale, self.direct)

    def _learn(self, regression: Regression, trace: Trace, dictionary: Dictionary, world: World) -> None:
        rows = some_rows(trace.pre.n, regression.config.rows, trace.x.device)
        order = first_features(trace, rows, math.ceil(self.most))
        level = world.sum(_exceeded(order.values, self.config.k).double()) / world.size
        if not 0 < float(level) < math.inf:
            return  # nothing to choose from, or the training diverges, which it says itself
        best = best_counts(trace, dictionary, rows, order, self.config.k).clamp(min=max(self.least, 0.5))
        self.level.lerp_(level.float(), _FOLLOW if float(self.level) else 1.0)
        readings = self.readings(trace.pre, trace.x)
        weight = regression.add(readings[rows], best.log(), world)
        if weight is None:
            return
        self.weight.copy_(weight)
        self._meet(torch.cat(world.gather(readings @ self.weight.double())), self.config.k, _HALVINGS)

    def _k(self, log_k: Tensor) -> Tensor:
        return log_k.exp().clamp(self.least, self.most)

    def _meet(self, scores: Tensor, k: float, halvings: int = 80) -> None:
        """The offset at which the mean k of ``scores [n]`` is ``k``."""
        reach = float(scores.abs().max()) + 40.0  # far enough on either side for every token to be at its bound
        if math.isfinite(reach):
            found = meet(k, lambda b: rounded(self._k(scores + b), self.d_sae), -reach, reach, halvings)
            self.offset.fill_(found)


def _exceeded(values: Tensor, k: float) -> Tensor:
    """[]: what k per row of ``values [m, most]`` reach; 0 without rows."""
    if values.numel() == 0:
        return values.new_zeros(())
    return values.reshape(-1).topk(min(max(round(k * len(values)), 1), values.numel())).values[-1]
