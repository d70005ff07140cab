"""Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): nested prefixes over BatchTopK, with aux-k.

The rule is the paper's; ``--set 'matryoshka.allocator={"kind": "token_choice", "budget": {"kind": "constant",
"k": 32}}'`` gives it another.
"""

from __future__ import annotations

from ..objectives import AuxKConfig, NestedConfig
from ..training import RunConfig
from .base import Recipe, plain, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Mutual Choice with its defaults, and the paper's five prefixes."""
    run = plain("mutual_choice", d_in, d_sae, k, seed)
    return run.model_copy(update={"objectives": (NestedConfig(), AuxKConfig())})


register(Recipe("matryoshka", make, "arXiv 2503.17547"))
