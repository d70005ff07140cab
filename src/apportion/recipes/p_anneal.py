"""ReLU with an L_p penalty whose p is annealed from 1 to 0.2 (arXiv 2408.00113)."""

from __future__ import annotations

from ..schedules import Linear
from ..training import RunConfig
from .base import Recipe, priced, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """L1 while L0 comes down to k, then p falls, and has arrived when the learning rate begins to."""
    return priced("relu", d_in, d_sae, k, seed, p=Linear(start=1.0, end=0.2, begin=0.3, until=0.8))


register(Recipe("p_anneal", make, "arXiv 2408.00113"))
