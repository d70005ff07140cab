"""Maps from a score to a share of the way from the least to the most k. Each is monotone in the score."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn

N_QUANTILES = 257


class ScoreMap(nn.Module, abc.ABC):
    """Score -> place on a line -> share; the budget moves the places by one offset until the mean k is met."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def place(self, score: Tensor) -> Tensor:
        """[n] float64, rising with ``score [n]`` float64; 0 for the score 0 before ``fit``."""
        return self.slope * score

    @abc.abstractmethod
    def share(self, place: Tensor) -> Tensor:
        """[n] in [0, 1], rising; a half at the place 0."""

    def fit(self, scores: Tensor) -> None:
        """Learn what the scores of tokens are like, ``scores [n]``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]


class Sigmoid(ScoreMap):
    """σ(slope · score + offset), as published."""

    def share(self, place: Tensor) -> Tensor:
        return torch.sigmoid(place)


class Line(ScoreMap):
    """A straight line of the sigmoid's slope in the middle, cut at both ends."""

    def share(self, place: Tensor) -> Tensor:
        return (0.5 + place / 4).clamp(0, 1)


class Rank(ScoreMap):
    """The sigmoid of the log-odds of a score's quantile: how scores are spread does not matter, only their order.

    At the offset 0 every k between the bounds is as frequent as every other.

    Buffers:
        quantiles: [257] float32, ascending; those of a normal score before ``fit``.
    """

    quantiles: Tensor

    def __init__(self, slope: float) -> None:
        super().__init__(slope)
        self.register_buffer("quantiles", torch.special.ndtri(_levels()).float())

    def place(self, score: Tensor) -> Tensor:
        knots = self.quantiles.double()
        after = torch.searchsorted(knots, score.detach()).clamp(1, N_QUANTILES - 1)
        low, high = knots[after - 1], knots[after]
        between = ((score - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)
        return torch.logit((after - 0.5 + between) / N_QUANTILES)

    def share(self, place: Tensor) -> Tensor:
        return torch.sigmoid(place)

    @torch.no_grad()
    def fit(self, scores: Tensor) -> None:
        ordered = scores.double().sort().values  # ``torch.quantile`` takes no more than 16 million
        self.quantiles.copy_(ordered[(_levels().to(ordered.device) * (len(ordered) - 1)).round().long()])


def _levels() -> Tensor:
    return (torch.arange(N_QUANTILES, dtype=torch.float64) + 0.5) / N_QUANTILES


MAPS: dict[str, type[ScoreMap]] = {"sigmoid": Sigmoid, "linear": Line, "rank": Rank}
