"""What the oracle of allocation costs: an evaluation with it, as a multiple of one without."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..activations import Source, SyntheticConfig, SyntheticSource
from ..activations.source import Batch, Split, Stream
from ..errors import InvalidConfig
from ..evaluate import evaluate
from ..recipes import find_recipe
from ..sae import SAE
from .timing import timed


def bench_oracle(
    recipes: Sequence[str] = ("token_choice",),
    *,
    d_in: int = 768,
    d_sae: int = 16_384,
    k: float = 32,
    k_max: int = 256,
    tokens: int = 16_384,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Evaluate the frozen rule of each recipe on ``tokens`` tokens, without the oracle and with it, in turn.

    Tokens come from a known dictionary, which is the SAE's, and are held in memory.

    Returns: a row per recipe: ``recipe``; the medians ``evaluate_s`` and ``with_oracle_s``; ``ratio``, the median
    over rounds of the second to the first; ``allocation_efficiency``, ``l0`` and what was measured.
    """
    if min(rounds, tokens, k_max) < 1:
        raise InvalidConfig(f"rounds = {rounds}, tokens = {tokens} and k_max = {k_max} must be positive")
    settings = {
        "d_in": d_in,
        "n_features": d_sae,
        "k": k,
        "k_max": min(4 * int(k), d_sae),
        "n_tokens": 4 * tokens,
    }
    made = SyntheticSource(SyntheticConfig.parse(settings, "bench oracle"), heldout=0.8)
    held = _Held([Batch(block.x) for block in made.blocks("evaluate", tokens)])
    return [_row(name, _sae(name, made, held, k), held, k_max, rounds) for name in recipes]


class _Held(Source):
    """Blocks in memory, the same for each part."""

    def __init__(self, held: Sequence[Batch]) -> None:
        self.held = held

    @property
    def d_in(self) -> int:
        return self.held[0].x.shape[1]

    def describe(self) -> dict[str, Any]:
        return {"kind": "held"}

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        raise NotImplementedError

    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return iter(self.held)


def _row(name: str, sae: SAE, source: Source, k_max: int, rounds: int) -> dict[str, Any]:
    plain, whole = [], []
    for _ in range(rounds):
        plain.append(timed(lambda: evaluate(sae, source))[0])
        seconds, measures = timed(lambda: evaluate(sae, source, oracle=k_max))
        whole.append(seconds)
    return {
        "recipe": name,
        "evaluate_s": statistics.median(plain),
        "with_oracle_s": statistics.median(whole),
        "ratio": statistics.median(b / a for a, b in zip(plain, whole, strict=True)),
        "allocation_efficiency": measures["allocation_efficiency"],
        "l0": measures["l0"],
        "tokens": measures["tokens"],
        "k_max": k_max,
    }


@torch.no_grad()
def _sae(name: str, made: SyntheticSource, held: _Held, k: float) -> SAE:
    config = find_recipe(name).make(made.d_in, made.config.n_features, k, 0).sae
    sae = SAE(config).requires_grad_(False)
    sae.initialise(torch.zeros(made.d_in), torch.Generator().manual_seed(0))
    sae.W_dec.copy_(made.directions)
    # Untrained features overlap; at their full size a few dozen would overshoot, and no token would want more.
    sae.encoder.weight.copy_(made.directions / 4)
    fitted, _ = sae.calibrate(lambda: (block.x for block in held.held[:4]), k)
    return fitted
