"""A threshold for every feature: the inference rule where features, not tokens, have quotas."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..affinities import Affinities, Ordered, Survey
from ..clock import END, Clock
from ..errors import InvalidInput
from .base import Allocation, Allocator, Calibration, OneKnob, code_at, measured


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
        """The (1 - density) quantile of each feature's affinities, times the one factor that gives ``k``."""
        fitted = FeatureThreshold(FeatureThresholdConfig(k=k), d_sae=len(self.theta)).to(self.density.device)
        fitted.density.copy_((self.density * (k / self.density.sum())).clamp(max=1.0))
        fitted.theta.copy_(_fit(survey, fitted.density.double(), k))
        return measured(fitted, survey, k)

    def fold(self, scale: float) -> None:
        self.theta /= scale


def _fit(survey: Survey, density: Tensor, k: float) -> Tensor:
    """[d_sae] thresholds that each feature's ``density`` and then, by one factor, ``k`` per token exceed.

    The quota-th largest of what every block hands in as its share is no more than the quota-th largest of all.
    A second pass collects everything above nine tenths of that bound, which decides unless the factor comes out
    lower than that for some features; for these alone the bound is lowered and a further pass made.
    """
    lowest, tokens = _bounds(survey, density)
    if tokens == 0:
        raise InvalidInput("there are no tokens to calibrate on; hold out more documents")
    quota, m = (density * tokens).round().long(), round(k * tokens)
    theta, bound = None, lowest * 0.9
    while True:
        values, features = _above(survey, bound)
        if theta is None:
            theta = _largest(values, features, quota, between=True)
        ratio = values.double() / theta.double()[features]  # infinite where every positive affinity passes
        factor = _cut(ratio, m)
        held_back = (bound > 0) & (bound.double() > factor * theta.double())
        if not bool(held_back.any()):
            return (theta.double() * factor).float()
        lower = torch.minimum(bound * 0.5, (0.9 * factor * theta.double()).float())
        bound = torch.where(held_back, lower.where(lower > 1e-3 * lowest, 0.0), bound)


def _bounds(survey: Survey, density: Tensor) -> tuple[Tensor, int]:
    """A lower bound [d_sae] of every feature's threshold, and the number of tokens."""
    values, features, tokens = [], [], 0
    for pre, _ in survey():
        share = (1.5 * density * pre.n).ceil().long() + 1
        pairs = pre.top_columns(share.clamp(max=pre.n))
        values.append(pre.at(pairs).float())
        features.append(pairs.features.int())
        tokens += pre.n
    if tokens == 0:
        return density.float(), 0
    quota = (density * tokens).round().long()
    return _largest(torch.cat(values), torch.cat(features).long(), quota, between=False), tokens


def _above(survey: Survey, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Values and features of all affinities above ``theta [d_sae]``."""
    values, features = [], []
    for pre, _ in survey():
        pairs = pre.above(theta)
        values.append(pre.at(pairs).float())
        features.append(pairs.features.int())
    return torch.cat(values), torch.cat(features).long()


def _largest(values: Tensor, features: Tensor, quota: Tensor, *, between: bool) -> Tensor:
    """[d_sae]: the ``quota[f]``-th largest value of every feature, 0 where there are fewer.

    With ``between`` the middle of it and the next, which is 0 after the last.
    """
    order = values.argsort(descending=True)
    order = order[features[order].argsort(stable=True)]
    counts = torch.bincount(features, minlength=len(quota))
    first = counts.cumsum(0) - counts
    ranked = torch.cat([values[order], values.new_zeros(1)])

    def nth(n: Tensor) -> Tensor:
        return torch.where((n >= 0) & (n < counts), ranked[(first + n).clamp(0, len(values))], 0.0)

    last = nth(quota - 1)
    if not between:
        return last
    following = nth(quota)
    top = nth(torch.zeros_like(quota))
    # No quota, no firing: nothing exceeds the largest value.
    return torch.where(quota <= 0, top, torch.where(last > 0, (last + following) / 2, 0.0))


def _cut(ratio: Tensor, m: int) -> float:
    """What the ``m`` largest ratios exceed and the next does not; 0 where there are no more than ``m``."""
    if len(ratio) <= m:
        return 0.0
    top = ratio.topk(m + 1).values
    low, high = float(top[m]), float(top[m - 1]) if m else float(top[0])
    return low if high == float("inf") else (low + high) / 2
