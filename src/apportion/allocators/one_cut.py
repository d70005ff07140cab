"""The one number that so many values exceed: fitted over blocks of which none is kept whole, and checked on
tokens that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..affinities import FOLDS, Affinities, Pairs, Part, Survey
from ..errors import InvalidInput
from ..ops.cut import between, widest_near
from .unseen import Spent, Unseen

_BELOW = 0.99
"""Of the lowest cut: above what values are listed when they are settled."""
_SLACK = 2.0**-22
"""Of a cut: values so near to it are in doubt, whatever they are computed in."""


class Gauge(NamedTuple):
    """The values that are cut: a rule's pre-activations, each over its feature's unit.

    Attributes:
        largest: (affinities, m) to the pairs of the ``m`` largest values, or of all positive ones if fewer.
        unit: [d_sae], above 0; None for 1.
        least: (affinities) to the pre-activations [d_sae] that a feature must exceed to fire at all.
    """

    largest: Callable[[Affinities, int], Pairs]
    unit: Tensor | None = None
    least: Callable[[Affinities], Tensor] | None = None

    def of(self, values: Tensor, pairs: Pairs) -> Tensor:
        """[nnz] float64: values from the pre-activations ``values [nnz]`` at the pairs."""
        wide = values.detach().double()
        return wide if self.unit is None else wide / pairs.spread(self.unit.double())

    def above(self, pre: Affinities, level: float) -> Pairs:
        """All pairs whose value is above ``level``."""
        bound = torch.tensor(level, device=pre.biases().device) if self.unit is None else level * self.unit
        return pre.above(bound if self.least is None else torch.maximum(bound, self.least(pre)))


class Cut(NamedTuple):
    """What a fit came to.

    Attributes:
        value: the cut, a float32 number; 0 where there are no more positive values than the budget.
        tokens: of the survey.
        fitted: how many values exceed it on them, decided as inference decides.
        unseen: features per token where each fold is cut at what the others were fitted to; None if there are
            too few rows to hold some out.
    """

    value: float
    tokens: int
    fitted: int
    unseen: Unseen | None


@torch.no_grad()
def fit_cut(survey: Survey, k: float, gauge: Gauge) -> Cut:
    """The cut between value number round(k N) of the survey's N tokens and the next.

    A first pass over the blocks finds it in float32, for all tokens and for all but each fold. A second one
    computes what lies nearest to these in float64, which is what decides at inference.

    Raises:
        InvalidInput: there are no tokens.
    """
    cuts, sizes = _rough(survey, k, gauge)
    tokens = sum(sizes)
    if cuts[0] == 0.0:
        return Cut(0.0, tokens, 0, None)
    seen = _Seen(cuts, gauge)
    for part in survey.parts():
        seen.add(part)
    value, fitted = seen.settled(round(k * tokens))
    folds = sum(size > 0 for size in sizes)
    return Cut(value, tokens, fitted, seen.spent.unseen(folds) if folds > 1 else None)


def _rough(survey: Survey, k: float, gauge: Gauge) -> tuple[list[float], list[int]]:
    """Cuts of all tokens and of all but each fold, and the tokens of each fold.

    Each block hands in several times its share of the largest values. A cut among them is the true one if it is
    no lower than what any block held back; else the blocks are run through again for more.
    """
    surplus = 3.0
    while True:
        kept, whose, floor, sizes = [], [], 0.0, torch.zeros(FOLDS, dtype=torch.int64)
        for part in survey.parts():
            share = int(surplus * k * part.pre.n) + 1
            pairs = gauge.largest(part.pre, share)
            values = gauge.of(part.pre.at(pairs), pairs).float()
            kept.append(values)
            whose.append(part.fold[pairs.rows].to(torch.int8))
            sizes += torch.bincount(part.fold.cpu(), minlength=FOLDS)
            if len(values) >= share:
                floor = max(floor, float(values.min()))
        tokens = int(sizes.sum())
        if tokens == 0:
            raise InvalidInput("there are no tokens to calibrate on; hold out more documents")
        falling, order = torch.cat(kept).sort(descending=True)
        fold = torch.cat(whose)[order]
        cuts = [between(falling, round(k * tokens))]
        for one in range(FOLDS):
            without = tokens - int(sizes[one])
            alone = without in (0, tokens)  # the fold is all there is, or nothing
            cuts.append(cuts[0] if alone else between(falling[fold != one], round(k * without)))
        if floor == 0.0 or min(cuts) >= floor:
            return cuts, sizes.tolist()
        surplus *= 2


class _Seen:
    """What the second pass sees around the cuts: of all tokens, and of all but each fold."""

    def __init__(self, cuts: list[float], gauge: Gauge) -> None:
        self.whole, self.without = cuts[0], torch.tensor(cuts[1:], dtype=torch.float64)
        self.gauge, self.low = gauge, _BELOW * min(cuts)
        self.spent = Spent()
        self.near: list[Tensor] = []
        self.above, self.reach = 0, self.whole - self.low

    def add(self, part: Part) -> None:
        """Count a block's values beyond the cuts, and keep those that are in doubt."""
        pre = part.pre
        pairs = self.gauge.above(pre, self.low)
        value = self.gauge.of(pre.at(pairs), pairs)
        slack = self.gauge.of(pre.slack()[pairs.rows], pairs)
        own = self.without.to(value.device)[part.fold[pairs.rows]]
        doubt = 2 * slack + _SLACK * self.whole
        about = (value - self.whole).abs() <= doubt
        vague = (about | ((value - own).abs() <= doubt)).nonzero()[:, 0]
        few = Pairs(pairs.rows[vague], pairs.features[vague])
        value[vague] = self.gauge.of(pre.exact(few), few)
        self.near.append(value[about])
        clear, rest = value[~about], slack[~about]
        self.above += int((clear > self.whole).sum())
        if len(clear):
            self.reach = min(self.reach, float(((clear - self.whole).abs() - rest).min()))
        self.spent.add(part.unit, torch.bincount(pairs.rows[value > own], minlength=pre.n))

    def settled(self, m: int) -> tuple[float, int]:
        """The cut that leaves about ``m`` values above, and how many it leaves."""
        near = torch.cat(self.near)
        inside = (near - self.whole).abs() < self.reach
        beyond = int((near[~inside] > self.whole).sum())
        return widest_near(near[inside], self.whole, self.reach, self.above + beyond, m)
