"""ReLU with an L_p penalty whose p is annealed from 1 to 0.2 (arXiv 2408.00113)."""

from __future__ import annotations

from ..schedules import Linear
from ..training import RunConfig
from .base import Recipe, priced, register
from .board_games import ANNEAL_FROM, published


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """L1 while L0 comes down to k, then p falls, and has arrived when the learning rate begins to."""
    return priced("relu", d_in, d_sae, k, seed, p=Linear(start=1.0, end=0.2, begin=0.3, until=0.8))


def board_games(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Chess and Othello: p falls from step 10,000 to the end."""
    return priced("relu", d_in, d_sae, k, seed, p=Linear(start=1.0, end=0.2, begin=ANNEAL_FROM, until=1.0))


_NOTES = (
    "p falls a little at every step, where the code takes ten steps down, and the price is rescaled on the batch "
    "at hand, where the code averages the last ten"
)

register(Recipe("p_anneal", make, "arXiv 2408.00113", papers={"board_games": published(board_games, _NOTES)}))
