"""The experiment that P-anneal was published with, ReLU + L1 and Gated beside it (arXiv 2408.00113).

Its settings are those of its code, ``circuits/sae_training/train_saes_parallel.py`` of SAE_BoardGameEval.
"""

from __future__ import annotations

from ..schedules import WarmupDecay
from ..training import RunConfig, TrainConfig
from .base import Make, Published

TRAIN = TrainConfig(n_tokens=300_000_000, batch_size=8192)
D_SAE = 4096  # 8 x 512, the narrower of its two
ANNEAL_FROM = 10_000 / TRAIN.n_steps

_NOTES = (
    "residual streams of chess and Othello models, at 8 times their width and at 16 times; the coefficient is "
    "steered to k, where the code tries 20 of them and raises each over its first steps; inputs are scaled by a "
    "power of two"
)


def published(make: Make, notes: str = "", **changes: object) -> Published:
    """The run of ``make`` with the experiment's learning rate, biases at zero and ``changes``, on its stream."""
    lr = WarmupDecay(peak=3e-4, warmup=1000 / TRAIN.n_steps, decay=0.0)

    def run(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
        return make(d_in, d_sae, k, seed).model_copy(update={"lr": lr, "b_enc": 0.0, **changes})

    return Published(run, TRAIN, D_SAE, "; ".join(part for part in (_NOTES, notes) if part))
