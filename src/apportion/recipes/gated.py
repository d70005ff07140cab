"""Gated (arXiv 2404.16014), the price of its gate steered to k."""

from __future__ import annotations

from ..training import RunConfig
from .base import Recipe, priced, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """The rule with its defaults."""
    return priced("gated", d_in, d_sae, k, seed)


register(Recipe("gated", make, "arXiv 2404.16014"))
