"""A threshold for every feature, fitted to its density where few firings tell what that takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..affinities import FOLDS, Affinities, Pairs, Survey
from ..errors import InvalidInput
from .unseen import Unseen

_HALF = 1.0
"""Firings at which a feature's own threshold counts half, and the scale that all share the other half."""
_MARGIN = 0.9
"""Of the least that a threshold may come out at: above what affinities are handed in."""
_SLACK = 2.0**-22
"""Of a threshold: values so near to it are in doubt, whatever they are computed in."""


class Fit(NamedTuple):
    """What a fit came to.

    Attributes:
        theta: [d_sae] float64, the thresholds.
        unseen: what they spend on tokens that they were not fitted on; None if too few rows can be held out.
    """

    theta: Tensor
    unseen: Unseen | None


class _Entries(NamedTuple):
    """Affinities that blocks hand in, by feature and within a feature falling: [nnz] each."""

    value: Tensor
    feature: Tensor
    unit: Tensor

    @classmethod
    def joined(cls, values: list[Tensor], features: list[Tensor], units: list[Tensor]) -> _Entries:
        value, feature = torch.cat(values), torch.cat(features).long()
        order = value.argsort(descending=True)
        order = order[feature[order].argsort(stable=True)]
        return cls(value[order], feature[order], torch.cat(units)[order].long())

    def take(self, keep: Tensor) -> _Entries:
        return _Entries(self.value[keep], self.feature[keep], self.unit[keep])

    def largest(self, quota: Tensor, *, between: bool) -> Tensor:
        """[d_sae] float64: the ``quota[f]``-th largest value of every feature, 0 where there are fewer.

        With ``between`` the middle of it and the next, which is 0 after the last.
        """
        counts = torch.bincount(self.feature, minlength=len(quota))
        first = counts.cumsum(0) - counts
        ranked = torch.cat([self.value, self.value.new_zeros(1)]).double()

        def nth(n: Tensor) -> Tensor:
            return torch.where(n < counts, ranked[(first + n).clamp(0, len(self.value))], 0.0)

        last = nth(quota - 1)
        return torch.where(last > 0, (last + nth(quota)) / 2, 0.0) if between else last


class _Units(NamedTuple):
    """The documents of a survey: fold and tokens of each, [u] int64."""

    fold: Tensor
    tokens: Tensor

    @property
    def folds(self) -> list[int]:
        """The folds that hold a token."""
        return [fold for fold in range(FOLDS) if bool((self.fold == fold).any())]

    def without(self, fold: int | None) -> int:
        """Tokens outside a fold; all for None."""
        outside = self.tokens if fold is None else self.tokens[self.fold != fold]
        return int(outside.sum())


@torch.no_grad()
def fit(survey: Survey, density: Tensor, k: float) -> Fit:
    """Thresholds [d_sae] that each feature's share ``density`` of tokens exceeds, times one factor that gives k.

    With q firings a threshold between two of them is off by about half a firing, always to the same side on
    tokens that it was not fitted on, and by more where a document has most of them. So the factor is fitted on
    held-out folds: those of documents under thresholds of all others. With one fold more a fit is better by the
    inverse of the number of folds, and the factor is carried on by that.

    Two passes, and a further one where the factor comes out so low that affinities below what was handed in
    would fire.

    Raises:
        InvalidInput: there are no tokens.
    """
    lowest, units = _bounds(survey, density)
    folds = units.folds if len(units.folds) > 1 else []
    bound = (lowest * _MARGIN).float()
    while True:
        entries = _above(survey, bound)
        fold = units.fold[entries.unit]
        theta = _thresholds(entries, density * units.without(None))
        ratio = entries.value.double() / theta[entries.feature]  # infinite where every positive affinity passes
        factor, least, held_out = _cut(ratio, round(k * units.without(None))), theta, ratio
        if folds:
            held_out = ratio.clone()
            for one in folds:
                others, mine = fold != one, fold == one
                own = _thresholds(entries.take(others), density * units.without(one))
                held_out[mine] = entries.value[mine].double() / own[entries.feature[mine]]
                least = torch.minimum(least, own)
            crossed = _cut(held_out, round(k * units.without(None)))
            floor = min(factor, crossed)
            factor *= (crossed / factor) ** (1 - 1 / len(folds)) if floor > 0 else 0.0
        else:
            floor = factor
        held_back = (bound > 0) & (bound.double() > floor * least)
        if not bool(held_back.any()):
            return Fit(theta * factor, _unseen(held_out, entries.unit, units, k) if folds else None)
        lower = torch.minimum(bound * 0.5, (_MARGIN * floor * least).float())
        bound = torch.where(held_back, lower.where(lower > 1e-3 * lowest, 0.0), bound)


def _thresholds(entries: _Entries, quota: Tensor) -> Tensor:
    """[d_sae] float64: between two entries where there are many, near the shared scale where there are few."""
    theta = entries.largest(quota.round().long().clamp(min=1), between=True)
    fits = theta > 0
    if not bool(fits.any()):
        return theta
    log, weight = theta.clamp(min=torch.finfo(theta.dtype).tiny).log(), quota * fits
    shared = (weight * log).sum() / weight.sum()
    return torch.where(fits, ((quota * log + _HALF * shared) / (quota + _HALF)).exp(), 0.0)


def _bounds(survey: Survey, density: Tensor) -> tuple[Tensor, _Units]:
    """A lower bound [d_sae] of every feature's quantile, with and without each fold, and the documents.

    The quota-th largest of what every block hands in as its share is no more than the quota-th largest of all.
    """
    handed: list[tuple[Tensor, Tensor, Tensor]] = []
    unit, fold = [], []
    for part in survey.parts():
        share = (1.5 * density * part.pre.n).ceil().long() + 1
        pairs = part.pre.top_columns(share.clamp(max=part.pre.n))
        handed.append((part.pre.at(pairs).float(), pairs.features.int(), part.unit[pairs.rows].int()))
        unit.append(part.unit)
        fold.append(part.fold)
    if not sum(map(len, unit)):
        raise InvalidInput("there are no tokens to calibrate on; hold out more documents")
    tokens = torch.bincount(torch.cat(unit))
    of = torch.full_like(tokens, -1).index_copy_(0, torch.cat(unit), torch.cat(fold))
    units = _Units(of, tokens)
    entries = _Entries.joined(*map(list, zip(*handed, strict=True)))
    lowest = None
    for one in (None, *(units.folds if len(units.folds) > 1 else ())):
        some = entries if one is None else entries.take(units.fold[entries.unit] != one)
        quota = (density * units.without(one)).round().long().clamp(min=1) + 1
        found = some.largest(quota, between=False)
        lowest = found if lowest is None else torch.minimum(lowest, found)
    assert lowest is not None
    return lowest, units


def _above(survey: Survey, theta: Tensor) -> _Entries:
    """All affinities above ``theta [d_sae]``."""
    values, features, units = [], [], []
    for part in survey.parts():
        pairs = part.pre.above(theta)
        values.append(part.pre.at(pairs).float())
        features.append(pairs.features.int())
        units.append(part.unit[pairs.rows].int())
    return _Entries.joined(values, features, units)


def _unseen(held_out: Tensor, unit: Tensor, units: _Units, k: float) -> Unseen:
    """What is spent where no fold has a say in its own thresholds and factor."""
    fold, features = units.fold[unit], torch.zeros_like(units.tokens)
    for one in units.folds:
        factor = _cut(held_out[fold != one], round(k * units.without(one)))
        hits = unit[(fold == one) & (held_out > factor)]
        features += torch.bincount(hits, minlength=len(features))
    return Unseen.of(features, units.tokens, len(units.folds))


def _cut(ratio: Tensor, m: int) -> float:
    """What the ``m`` largest ratios exceed and the next does not; 0 where there are no more than ``m``."""
    if len(ratio) <= m:
        return 0.0
    top = ratio.topk(m + 1).values
    low, high = float(top[m]), float(top[m - 1]) if m else float(top[0]) * (1 + 2.0**-10)
    return low if high == float("inf") else (low + high) / 2


class Around:
    """What lies so near to thresholds ``theta [d_sae]`` that rounding could carry it across."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta.double()
        self.upper, self.lower = torch.full_like(self.theta, torch.inf), torch.zeros_like(self.theta)
        self.slack = float("inf")

    def add(self, pre: Affinities) -> None:
        """Look at a block, in float64 where it matters."""
        slack = pre.slack()
        if not len(slack):
            return
        self.slack = min(self.slack, float(slack.min()))
        doubt = 2 * slack.max() + _SLACK * self.theta
        pairs = pre.above((self.theta - doubt).clamp(min=0).float())
        value, theta = pre.at(pairs).double(), pairs.spread(self.theta)
        near = ((value - theta).abs() <= 2 * slack[pairs.rows] + _SLACK * theta).nonzero()[:, 0]
        few = Pairs(pairs.rows[near], pairs.features[near])
        exact, theta = pre.exact(few), theta[near]
        over = exact > theta
        self.upper.scatter_reduce_(0, few.features[over], exact[over], "amin")
        self.lower.scatter_reduce_(0, few.features[~over], exact[~over], "amax")

    def middle(self) -> Tensor:
        """[d_sae] float32: each threshold in the middle of the gap that it lies in, so that none is a value."""
        room = self.slack + _SLACK * self.theta
        upper, lower = torch.minimum(self.upper, self.theta + room), torch.maximum(self.lower, self.theta - room)
        middle = ((upper + lower) / 2).float()
        near = self.upper.isfinite() | (self.lower > 0)
        inside = near & (lower < middle.double()) & (middle.double() < upper)
        return torch.where(inside, middle, self.theta.float())
