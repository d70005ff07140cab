"""JumpReLU (arXiv 2407.14435), the price of its L0 steered to k."""

from __future__ import annotations

from ..schedules import WarmupDecay
from ..training import RunConfig, TrainConfig
from .base import Published, Recipe, priced, register

_GEMMA = TrainConfig(n_tokens=8_000_000_000, batch_size=4096)


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Thresholds that learn ten times faster, in a window twenty times wider, than published.

    As published, the logarithm of a threshold moves by no more than the learning rate in a step, and takes
    thousands of them to where few features fire.
    """
    return priced("jump_relu", d_in, d_sae, k, seed, theta=0.02, width=0.02, pace=10.0)


def gemma(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Gemma-2-9B: thresholds and window at 0.001, biases at zero, no momentum."""
    run = priced("jump_relu", d_in, d_sae, k, seed)
    lr = WarmupDecay(peak=7e-5, warmup=1000 / _GEMMA.n_steps, decay=0.0)
    return run.model_copy(update={"lr": lr, "betas": (0.0, 0.999), "b_enc": 0.0})


_NOTES = (
    "the coefficient is steered to k, where the paper fixes one and raises it over 10,000 steps; the learning "
    "rate rises on a straight line, not on a cosine from a tenth of it; inputs are scaled by one power of two, "
    "not to a mean squared norm of 1; b_dec is subtracted from them and starts at their geometric median"
)

register(
    Recipe("jump_relu", make, "arXiv 2407.14435", papers={"gemma": Published(gemma, _GEMMA, 131_072, _NOTES)})
)
