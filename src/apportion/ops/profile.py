"""The shape of a token's affinities in a few numbers: how many lie above each of some levels, and how far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .above import Pairs

FLOOR = math.sqrt(0.5)
"""Share of the level below which affinities do not count."""
N_PROFILE = 10

_RUNGS = 8
_STEP = math.log(2) / 2


def profile(pairs: Pairs, values: Tensor, n: int, level: Tensor) -> Tensor:
    """[n, 10] float64: a row's numbers are a continuous function of that row's affinities alone.

    Eight logarithms of counts, of affinities above FLOOR, FLOOR √2, …, each in full from the next of these levels
    on; then of how much, and of how much of the squares, lies above FLOOR. All in units of ``level``.

    Args:
        pairs: those with an affinity above ``FLOOR * level``.
        values: [nnz] their affinities.
        n: number of rows.
        level: [] above 0.
    """
    ratio = values.detach().double() / level.double()
    rungs = _STEP * torch.arange(_RUNGS, dtype=torch.float64, device=ratio.device)
    counts = (((ratio / FLOOR).log()[:, None] - rungs) / _STEP).clamp(0, 1)
    amounts = torch.stack([ratio - FLOOR, ratio.square() - FLOOR**2], 1).clamp(min=0)
    sums = ratio.new_zeros(n, N_PROFILE).index_add_(0, pairs.rows, torch.cat([counts, amounts], 1))
    return (sums + 0.5).log()
