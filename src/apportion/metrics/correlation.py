"""Whether two numbers per token rise together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInput
from .base import wide


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation of ``a [n]`` and ``b [n]``, any number types: Pearson's, of their ranks.

    Equal numbers share the mean of their ranks. Float64. ``None`` where a or b is constant (or n < 2), for
    then no correlation is defined.

    Raises:
        InvalidInput: a and b are not two vectors of one length, or hold a NaN.
    """
    if a.dim() != 1 or a.shape != b.shape:
        raise InvalidInput(
            f"{list(a.shape)} numbers were to be correlated with {list(b.shape)}; pass two vectors of one length"
        )
    if bool(a.isnan().any() or b.isnan().any()):
        raise InvalidInput("NaN has no rank; drop the tokens whose number is not known")
    middle = (len(a) + 1) / 2
    first, second = average_ranks(a) - middle, average_ranks(b) - middle
    if not (first.any() and second.any()):
        return None
    return float(first @ second / (first.square().sum() * second.square().sum()).sqrt())


def average_ranks(a: Tensor) -> Tensor:
    """[n] float64: the rank of each entry of ``a [n]`` by rising value, from 1; equal ones share their mean."""
    _, place, counts = torch.unique(a, return_inverse=True, return_counts=True)
    return (wide(counts.cumsum(0)) - wide(counts - 1) / 2)[place]
