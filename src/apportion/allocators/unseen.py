"""What a fitted rule spends on tokens that it was not fitted on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Unseen(NamedTuple):
    """Features per token, each fold under the rule that was fitted to the others.

    Attributes:
        l0: the mean.
        se: its standard error over documents.
        folds: how many folds there were.
    """

    l0: float
    se: float
    folds: int

    @classmethod
    def of(cls, features: Tensor, tokens: Tensor, folds: int) -> Unseen:
        """From the sums of units [u]: a ratio with the units as clusters (Cochran 1977, §6.3)."""
        features, tokens = features[tokens > 0].double(), tokens[tokens > 0].double()
        n, total = len(tokens), float(tokens.sum())
        l0 = float(features.sum()) / total
        spread = float((features - l0 * tokens).square().sum())
        return cls(l0, math.sqrt(n / max(n - 1, 1) * spread) / total, folds)


class Spent:
    """Sums features and tokens by unit; see ``affinities.Part``."""

    def __init__(self) -> None:
        self._units: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, unit: Tensor, counts: Tensor) -> None:
        """Rows of the units ``unit [n]`` had ``counts [n]`` features each."""
        self._units.append(unit)
        self._counts.append(counts)

    def unseen(self, folds: int) -> Unseen:
        """Of all rows together."""
        units = torch.cat(self._units)
        tokens = torch.bincount(units)
        features = torch.zeros_like(tokens).index_add_(0, units, torch.cat(self._counts).to(tokens.dtype))
        return Unseen.of(features, tokens, folds)
