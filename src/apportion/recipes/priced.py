"""Token Choice under the priced budget: k follows the oracle's, learned from the dictionary's own errors."""

from __future__ import annotations

from ..allocators import TokenChoiceConfig
from ..budgets import PricedConfig
from ..sae import SAEConfig
from ..training import RunConfig
from .base import Recipe, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """The budget with its defaults."""
    where = "recipe priced"
    allocator = TokenChoiceConfig(budget=PricedConfig.parse({"k": k}, where))
    sae = SAEConfig.parse({"d_in": d_in, "d_sae": d_sae, "allocator": allocator}, where)
    return RunConfig.parse({"sae": sae, "seed": seed}, where)


register(Recipe("priced", make, "no paper"))
