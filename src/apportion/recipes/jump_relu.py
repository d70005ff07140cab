"""JumpReLU (arXiv 2407.14435), the price of its L0 steered to k."""

from __future__ import annotations

from ..training import RunConfig
from .base import Recipe, priced, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Thresholds that learn ten times faster, in a window twenty times wider, than published.

    As published, the logarithm of a threshold moves by no more than the learning rate in a step, and takes
    thousands of them to where few features fire.
    """
    return priced("jump_relu", d_in, d_sae, k, seed, theta=0.02, width=0.02, pace=10.0)


register(Recipe("jump_relu", make, "arXiv 2407.14435"))
