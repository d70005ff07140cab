"""ReLU with an L1 penalty (Bricken et al. 2023), its coefficient steered to k."""

from __future__ import annotations

from ..training import RunConfig
from .base import Recipe, priced, register
from .board_games import published


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """The rule with its defaults."""
    return priced("relu", d_in, d_sae, k, seed)


_NOTES = (
    "published settings of Bricken et al. 2023 themselves, with their resampling of dead features, are not given"
)

register(
    Recipe(
        "relu_l1",
        make,
        "Bricken et al. 2023, Towards Monosemanticity",
        papers={"board_games": published(make, _NOTES)},
    )
)
