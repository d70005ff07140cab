"""Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): nested prefixes over BatchTopK, with aux-k.

The rule is the paper's; ``--set 'matryoshka.allocator={"kind": "token_choice", "budget": {"kind": "constant",
"k": 32}}'`` gives it another.
"""

from __future__ import annotations

from ..objectives import AuxKConfig, NestedConfig
from ..schedules import WarmupDecay
from ..training import RunConfig, TrainConfig
from .base import Published, Recipe, plain, register

_GEMMA = TrainConfig(n_tokens=500_000_000, batch_size=2048)


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Mutual Choice with its defaults, and the paper's five prefixes."""
    run = plain("mutual_choice", d_in, d_sae, k, seed)
    return run.model_copy(update={"objectives": (NestedConfig(), AuxKConfig())})


def gemma(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Gemma-2-2B, layer 12, on the Pile."""
    lr = WarmupDecay(peak=3e-4, warmup=1000 / _GEMMA.n_steps, decay=0.2)
    return make(d_in, d_sae, k, seed).model_copy(update={"lr": lr, "dead_after": 10_000_000})


_NOTES = (
    "warm-up, decay and the tokens after which a feature is dead are the published code's; the auxiliary loss is "
    "computed on a quarter of the rows; inputs are scaled by one power of two"
)

register(
    Recipe("matryoshka", make, "arXiv 2503.17547", papers={"gemma": Published(gemma, _GEMMA, 65_536, _NOTES)})
)
