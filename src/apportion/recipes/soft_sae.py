"""SoftSAE (arXiv 2605.06610): a k that is learned through a soft top-k; by default with the shared estimator."""

from __future__ import annotations

from ..allocators import SoftTopKConfig
from ..budgets import LearnedConfig
from ..sae import SAEConfig
from ..schedules import Constant, Linear, LinearSteps, WarmupDecay
from ..training import RunConfig, TrainConfig
from .base import Published, Recipe, plain, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """The rule with its defaults."""
    return plain("soft_top_k", d_in, d_sae, k, seed)


_LLM = TrainConfig(n_tokens=500_000_000, batch_size=2048)
_CLIP = TrainConfig(n_tokens=40_000 * 8192, batch_size=8192)


def llm(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Gemma-2-2B, layer 12: alpha comes down over 2,500 steps, the last 10,000 are hard."""
    steps = _LLM.n_steps
    budget = LearnedConfig(
        k=k, estimator="own", weight=1.0, lower=False, relaxed=Linear(start=1.0, end=0.0, until=0.01)
    )
    allocator = SoftTopKConfig(
        budget=budget,
        alpha=LinearSteps(start=0.99, end=1e-4, steps=2500),
        hard=10_000,
        floor=1e-4,
        through_rank=True,
    )
    return RunConfig(
        sae=SAEConfig(d_in=d_in, d_sae=d_sae, allocator=allocator),
        lr=WarmupDecay(peak=3e-4, warmup=1000 / steps, decay=0.2),
        seed=seed,
    )


def clip(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """CLIP: alpha stays at 1e-4, k comes down over 1,600 steps, the last 6,000 are hard."""
    steps = _CLIP.n_steps
    relaxed = LinearSteps(start=1.0, end=0.0, steps=1600)
    budget = LearnedConfig(k=k, estimator="own", weight=1.0, lower=False, relaxed=relaxed)
    allocator = SoftTopKConfig(
        budget=budget, alpha=Constant(value=1e-4), hard=6000, floor=1e-4, through_rank=True
    )
    return RunConfig(
        sae=SAEConfig(d_in=d_in, d_sae=d_sae, allocator=allocator),
        lr=WarmupDecay(peak=6e-4, warmup=1900 / steps, decay=1 - 6500 / steps),
        dead_after=400_000,
        seed=seed,
    )


_NOTES = (
    "k is rounded, where the published code truncates; hard steps train the encoder, where the code does not, "
    "and the budget's loss goes on in them; the estimator's score is scaled by 2 / sqrt(d_sae) and its gradient "
    "clipped apart; weights below 1e-4 are left out; warm-up and decay are the published shares of the published "
    "length; the auxiliary loss is computed on a quarter of the rows; inputs are scaled by one power of two"
)

register(
    Recipe(
        "soft_sae",
        make,
        "arXiv 2605.06610",
        papers={
            "llm": Published(llm, _LLM, 16_384, _NOTES),
            "clip": Published(clip, _CLIP, 4096, f"{_NOTES}, not shifted", k=220),
        },
    )
)
