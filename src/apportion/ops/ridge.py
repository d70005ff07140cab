"""Ridge regression from sums of products: exact, for any number of rows, none of which is kept.

The sums of rows x with targets y are S = Σ z zᵀ for z = (x, 1, y), [d + 2, d + 2] float64, which add up over
batches and processes. A *fold* is a part of the rows with sums of its own. All in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fit(NamedTuple):
    """A linear prediction ``x @ weight + bias``.

    Attributes:
        weight: [d].
        bias: [], not penalised.
        penalty: λ of λ |weight|² beside the summed squared error.
    """

    weight: Tensor
    bias: Tensor
    penalty: float


def products(x: Tensor, y: Tensor, n_folds: int) -> Tensor:
    """[n_folds, d + 2, d + 2], the sums of ``x [n, d]`` with ``y [n]`` by fold."""
    z = torch.cat([x.double(), torch.ones_like(x[:, :1]).double(), y.double()[:, None]], 1)
    fold = fold_of(y, n_folds)
    return torch.stack([part.T @ part for part in (z[fold == number] for number in range(n_folds))])


def fold_of(y: Tensor, n_folds: int) -> Tensor:
    """[n] int64 below ``n_folds``, from a hash of the target alone.

    Tokens of one text have one target, so that no text is in two folds.
    """
    bits = y.float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    # Each round multiplies (Knuth's constant) and mixes the upper half in, for targets that differ in few bits.
    for _ in range(2):
        bits = (bits * 0x9E3779B1) & 0xFFFFFFFF
        bits = bits ^ (bits >> 15)
    return bits % n_folds


def fit_ridge(sums: Tensor, penalties: tuple[float, ...]) -> list[Fit]:
    """The exact solution for each penalty, of rows whose sums are ``sums [d + 2, d + 2]``."""
    n = sums[-2, -2]
    mean, target = sums[:-2, -2] / n, sums[-1, -2] / n
    covariance = sums[:-2, :-2] - n * mean[:, None] * mean
    with_target = sums[:-2, -1] - n * mean * target
    values, vectors = torch.linalg.eigh(covariance)
    turned = vectors.T @ with_target
    found = []
    for penalty in penalties:
        weight = vectors @ (turned / (values.clamp(min=0) + penalty))
        found.append(Fit(weight, target - mean @ weight, penalty))
    return found


def solve_ridge(sums: Tensor, rows: float) -> Fit:
    """The solution under a penalty in each column's own units: it is shrunk as by ``rows`` rows of no relation.

    A column that does not vary gets no weight.
    """
    n = sums[-2, -2]
    mean, target = sums[:-2, -2] / n, sums[-1, -2] / n
    covariance = sums[:-2, :-2] / n - mean[:, None] * mean
    variance = covariance.diagonal()
    unit = torch.where(variance > 1e-12 * (sums.diagonal()[:-2] / n), 1 / variance.clamp(min=0).sqrt(), 0.0)
    alike = covariance * (unit[:, None] * unit)
    alike.diagonal().fill_(1.0).add_(rows / n)
    with_target = unit * (sums[:-2, -1] / n - mean * target)
    factor = torch.linalg.cholesky(alike)
    weight = unit * torch.cholesky_solve(with_target[:, None], factor)[:, 0]
    return Fit(weight, target - mean @ weight, rows)


def squared_error(sums: Tensor, fit: Fit) -> Tensor:
    """[]: Σ (y - prediction)² over the rows whose sums are ``sums``."""
    residual = torch.cat([-fit.weight, -fit.bias[None], fit.bias.new_ones(1)])
    return residual @ sums @ residual


def choose_ridge(sums: Tensor, penalties: tuple[float, ...]) -> Fit:
    """The fit to all rows under the penalty that predicts left-out folds best, ``sums [n_folds, d + 2, d + 2]``.

    Folds without rows count for nothing; with rows in one only, the largest penalty is taken.
    """
    total = sums.sum(0)
    errors = torch.zeros(len(penalties), dtype=torch.float64, device=sums.device)
    filled = [part for part in sums if part[-2, -2] > 0]
    for part in filled if len(filled) > 1 else ():
        errors += torch.stack([squared_error(part, fit) for fit in fit_ridge(total - part, penalties)])
    best = int(errors.argmin()) if len(filled) > 1 else len(penalties) - 1
    return fit_ridge(total, (penalties[best],))[0]
