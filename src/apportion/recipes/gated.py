"""Gated (arXiv 2404.16014), the price of its gate steered to k."""

from __future__ import annotations

from ..training import RunConfig
from .base import Recipe, priced, register
from .board_games import published


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """The rule with its defaults."""
    return priced("gated", d_in, d_sae, k, seed)


_NOTES = (
    "no momentum, as in its code; arXiv 2404.16014 had the same learning rate, its batch, width and length are "
    "not given"
)

register(
    Recipe(
        "gated",
        make,
        "arXiv 2404.16014",
        papers={"board_games": published(make, _NOTES, betas=(0.0, 0.999))},
    )
)
