"""Whether a few tokens hold the variance that a ratio of sums is about."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Json, Metric, MetricBatch, wide

FEW, MOST = 0.01, 0.5
"""A ratio of sums over tokens misleads where so small a share of them holds more than so much of the variance."""


TOP = "variance_in_top_percent"
"""What the share is called in results and metadata."""


def top_share(x: Tensor) -> float:
    """The share of Σ‖x − m‖² that the 1 % of the rows ``x [n, d]`` farthest from their median m hold.

    0 of fewer than 100 rows, of which there is no hundredth, and of rows that are all equal.
    """
    x = wide(x)
    return _share((x - x.median(0).values).square().sum(1)) if len(x) else 0.0


def dominated(share: float | None) -> str | None:
    """The sentence that belongs to a ratio of sums in which 1 % of the tokens hold ``share`` of the variance."""
    if share is None or share <= MOST:
        return None
    return (
        f"1 % of the tokens hold {share:.1%} of the variance, so FVU and every other ratio of sums tells of them "
        "and not of the others; leave tokens of outlying norm out (capture with --outliers 10, read without "
        "--keep-outliers)"
    )


class Concentration(Metric):
    """``variance_in_top_percent``: the share of the variance that the 1 % of the tokens with the most of it hold.

    Distances are from the median of the first block, coordinate by coordinate, which a few tokens do not move;
    4 bytes are kept for every token.
    """

    def __init__(self) -> None:
        self._centre: Tensor | None = None
        self._distances: list[Tensor] = []

    def update(self, batch: MetricBatch) -> None:
        if len(batch.x) == 0:
            return
        x = wide(batch.x)
        if self._centre is None:
            self._centre = x.median(0).values
        self._distances.append((x - self._centre).square().sum(1).float().cpu())

    def result(self) -> dict[str, Json]:
        known = torch.cat(self._distances) if self._distances else torch.zeros(0)
        return {TOP: _share(known.double())}


def _share(squares: Tensor) -> float:
    few = int(len(squares) * FEW)
    total = float(squares.sum())
    return float(squares.topk(few).values.sum()) / total if few and total > 0 else 0.0
