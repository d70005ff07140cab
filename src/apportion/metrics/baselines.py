"""What a dictionary competes with: the best linear projection of the same width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidInput
from .base import Moments, need_tokens, unexplained, wide


@dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of a set of rows.

    Attributes:
        mean: [d_in] float64, of the fitted rows.
        components: [d_in, d_in] float64, a direction per row, by falling variance.
    """

    mean: Tensor
    components: Tensor

    def reconstruct(self, x: Tensor, k: int) -> Tensor:
        """The projection of ``x [n, d_in]`` on the mean and the first ``k`` components, float64.

        Raises:
            InvalidInput: ``k`` is outside 0 to d_in.
        """
        if not 0 <= k <= len(self.components):
            raise InvalidInput(f"k = {k} components were asked for; choose 0 to {len(self.components)}")
        basis = self.components[:k]
        return self.mean + (wide(x) - self.mean) @ basis.T @ basis

    def fvu(self, blocks: Iterable[Tensor], k: int) -> float:
        """FVU of the rows of ``blocks`` under the first ``k`` components. See ``pca_fvu``."""
        spread, error = Moments(), 0.0
        for x in blocks:
            spread.update(x)
            error += float((wide(x) - self.reconstruct(x, k)).square().sum())
        return unexplained(error, spread)


def fit_pca(blocks: Iterable[Tensor]) -> Pca:
    """Principal components of the rows of ``blocks`` (each [n, d_in]), centred, covariance in float64.

    Raises:
        InvalidInput: there are no rows.
    """
    moments = Moments(full=True)
    for x in blocks:
        moments.update(x)
    need_tokens(moments.n)
    directions = torch.linalg.eigh(moments.scatter).eigenvectors  # in columns, by rising variance
    return Pca(moments.mean, directions.flip(1).T)


def pca_fvu(fit_rows: Tensor | Iterable[Tensor], eval_blocks: Tensor | Iterable[Tensor], k: int) -> float:
    """FVU of ``eval_blocks`` under the first ``k`` principal components of ``fit_rows``.

    The components and their mean come from ``fit_rows`` alone (training or calibration rows). FVU is that
    of ``Reconstruction``: the mean in its denominator is that of the evaluated rows. Each component is an
    axis with a sign, so k of them are not the same budget as k features that only fire positively.

    Args:
        fit_rows, eval_blocks: rows [n, d_in], or several such blocks.
        k: number of components, 0 to d_in.

    Raises:
        InvalidInput: no rows to fit or to measure, equal rows, or ``k`` out of range.
    """
    return fit_pca(_as_blocks(fit_rows)).fvu(_as_blocks(eval_blocks), k)


def _as_blocks(rows: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [rows] if isinstance(rows, Tensor) else rows
