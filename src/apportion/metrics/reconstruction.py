"""How much of the activations a reconstruction keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Json, Metric, MetricBatch, Moments, unexplained, wide


class Reconstruction(Metric):
    """Fraction of variance unexplained, explained variance and cosine.

    ``fvu`` = Σ‖x − x̂‖² / Σ‖x − x̄‖² with x̄ the mean over the whole evaluation set and
    ``explained_variance`` = 1 − ``fvu`` (2410.20526): neither a mean of ratios nor the variance of the
    residual, so a constant bias counts in full. ``cosine`` is the mean over tokens of cos(x, x̂), 0 where
    one of them is 0. All sums are float64.
    """

    def __init__(self) -> None:
        self._spread = Moments()
        self._error = 0.0
        self._cosine = 0.0

    @property
    def mean(self) -> Tensor:
        """[d_in] float64, the mean of the tokens so far."""
        return self._spread.mean

    def update(self, batch: MetricBatch) -> None:
        x, x_hat = wide(batch.x), wide(batch.x_hat)
        self._spread.update(x)
        self._error += float((x - x_hat).square().sum())
        norms = x.norm(dim=-1) * x_hat.norm(dim=-1)
        cosine = torch.where(norms > 0, (x * x_hat).sum(-1) / norms, 0.0)
        self._cosine += float(cosine.sum())

    def result(self) -> dict[str, Json]:
        fvu = unexplained(self._error, self._spread)
        return {"fvu": fvu, "explained_variance": 1 - fvu, "cosine": self._cosine / self._spread.n}
