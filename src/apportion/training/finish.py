"""From a trained SAE to one for inference: frozen, calibrated on held-out tokens, input scale folded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..activations.source import Source
from ..calibrate import described
from ..metrics.base import Moments, unexplained
from ..sae import SAE
from .step import Run

GAP_TOKENS = 65_536
"""Calibration tokens on which silent features are counted and the rules of training and inference compared."""


def finish(
    run: Run, source: Source, scale: float, limit: int | None, history: dict[str, Any], batch_size: int
) -> SAE:
    """The SAE to save.

    Args:
        run: after its last step.
        source: its ``calibrate`` part is used.
        scale: what training multiplied activations by.
        limit: calibration tokens; None for all.
        history: how it was trained, JSON, for the metadata.
        batch_size: tokens that competed with one another.
    """

    def blocks() -> Iterator[Tensor]:
        for batch in source.blocks("calibrate", limit):
            yield batch.x.to(run.sae.device) * scale

    reports = {one.name: dict(found) for one in run.losses if (found := one.report())}
    sae, calibration = run.sae.freeze().calibrate(blocks, run.sae.k)
    tokens = min(limit or GAP_TOKENS, GAP_TOKENS)
    further: dict[str, Any] = {"silent": silent_share(run.sae, blocks, tokens)}
    if run.sae.allocator.couples_rows:
        further |= inference_gap(run.sae, sae, blocks, batch_size, tokens)
    sae = sae.fold(scale).requires_grad_(False).eval()
    sae.metadata = {
        "source": source.describe(),
        "training": history | reports,
        "calibration": {**described(calibration), **further},
    }
    return sae


@torch.no_grad()
def inference_gap(
    trained: SAE, frozen: SAE, blocks: Callable[[], Iterator[Tensor]], batch_size: int, limit: int
) -> dict[str, dict[str, float]]:
    """L0 and FVU on the same rows under the rule of training (``in_batches``), and under the frozen one.

    Only whole batches count, so that the rule meets what it met in training; nothing if there is none.
    """
    rules, sums = (trained, frozen), torch.zeros(2, 2, dtype=torch.float64)
    spread = Moments()
    for x in batches_of(blocks(), batch_size):
        if spread.n and spread.n + len(x) > limit:
            break
        spread.update(x)
        for number, sae in enumerate(rules):
            trace = sae.trace(x)
            sums[number, 0] += trace.code.nnz
            sums[number, 1] += (trace.x - trace.x_hat).double().square().sum().cpu()
    if spread.n == 0:
        return {}
    together, alone = (
        {"l0": float(spent) / spread.n, "fvu": unexplained(float(error), spread), "tokens": spread.n}
        for spent, error in sums
    )
    return {"in_batches": together, "frozen": alone}


@torch.no_grad()
def silent_share(sae: SAE, blocks: Callable[[], Iterator[Tensor]], limit: int) -> float:
    """The share of features whose affinity is zero on all of the first ``limit`` rows: they get no gradient from
    any loss, auxiliary ones included."""
    largest, seen = torch.full((sae.d_sae,), -torch.inf, device=sae.device), 0
    for x in blocks():
        if seen >= limit:
            break
        largest = torch.maximum(largest, sae.survey(x[: limit - seen]).peaks())
        seen += len(x)
    return float((largest <= 0).float().mean())


def batches_of(blocks: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of ``blocks`` in whole batches of ``size``; what is left over is left out."""
    held: list[Tensor] = []
    for block in blocks:
        held.append(block)
        while sum(len(part) for part in held) >= size:
            rows = torch.cat(held)
            yield rows[:size]
            held = [rows[size:]]
