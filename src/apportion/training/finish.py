"""From a trained SAE to one for inference: frozen, calibrated on held-out tokens, input scale folded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..activations.source import Source
from ..calibrate import described, fit
from ..clock import Clock
from ..metrics.base import Moments, unexplained
from ..metrics.concentration import TOP, top_share
from ..sae import SAE
from .configs import TrainConfig
from .step import Run

GAP_TOKENS = 65_536
"""Calibration tokens on which silent features are counted and the rules of training and inference compared."""

CONCENTRATION_TOKENS = 8192
"""Calibration tokens of which the share of the variance that 1 % of them hold is taken."""


def finish(run: Run, source: Source, scale: float, settings: TrainConfig, history: dict[str, Any]) -> SAE:
    """The SAE to save.

    Args:
        run: after its last step.
        source: its ``calibrate`` part is used.
        scale: what training multiplied activations by.
        settings: how many tokens there are to calibrate on, and how many competed with one another in training.
        history: how it was trained, JSON, for the metadata.
    """
    limit = settings.calibrate_tokens

    def rows() -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in source.blocks("calibrate", limit):
            yield batch.x.to(run.sae.device) * scale, batch.document

    def blocks() -> Iterator[Tensor]:
        return (x for x, _ in rows())

    ended = Clock(settings.n_steps, settings.n_steps, settings.n_steps * settings.batch_size)
    reports = {one.name: dict(found) for one in run.losses if (found := one.report(ended))}
    sae, calibration = fit(run.sae.freeze(), rows, run.sae.k)
    tokens = min(limit or GAP_TOKENS, GAP_TOKENS)
    further: dict[str, Any] = {
        "silent": silent_share(run.sae, blocks, tokens),
        "silent_tokens": min(calibration.tokens, tokens),
    }
    if run.sae.allocator.couples_rows:
        gap = inference_gap(run.sae, sae, blocks, settings, tokens)
        further |= gap
        if (
            "in_batches" in gap
        ):  # what training left is a rule of batches, not the threshold that stands in for it
            further |= {"fvu_before": gap["in_batches"]["fvu"], "fvu": gap["frozen"]["fvu"]}
    further[TOP] = top_share(first_rows(blocks(), CONCENTRATION_TOKENS))
    sae = sae.fold(scale).requires_grad_(False).eval()
    sae.metadata = {
        "source": source.describe(),
        "training": history | reports,
        "calibration": {**described(calibration, scale), **further},
    }
    return sae


@torch.no_grad()
def inference_gap(
    trained: SAE, frozen: SAE, blocks: Callable[[], Iterator[Tensor]], settings: TrainConfig, limit: int
) -> dict[str, Any]:
    """L0 and FVU on the same rows under the rule of training (``in_batches``), and under the frozen one.

    The rule meets what it met in training: whole batches of mixed documents, a step each. They are drawn from
    the first ``limit`` rows, or a batch if that is more; where there are not so many, ``no_gap`` says so.
    """
    rows = first_rows(blocks(), max(limit, settings.batch_size))
    mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)
    sums = torch.zeros(2, 2, dtype=torch.float64)
    spread = Moments()
    for number in range(len(rows) // settings.batch_size):
        x = rows[mixed[number * settings.batch_size :][: settings.batch_size]]
        spread.update(x)
        step = settings.n_steps + number
        clock = Clock(step, settings.n_steps, step * settings.batch_size)
        for which, sae in enumerate((trained, frozen)):
            trace = sae.trace(x, clock)
            sums[which, 0] += trace.code.nnz
            sums[which, 1] += (trace.x - trace.x_hat).double().square().sum().cpu()
    if spread.n == 0:
        size = settings.batch_size
        return {
            "no_gap": f"{len(rows)} tokens to calibrate on fill no batch of {size}; calibrate on at least {size}"
        }
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


def first_rows(blocks: Iterator[Tensor], n: int) -> Tensor:
    """[n, d_in]: the first rows of ``blocks``, or all if they are fewer; [0] if there are none."""
    held: list[Tensor] = []
    while n > 0 and (block := next(blocks, None)) is not None:
        held.append(block[:n])
        n -= len(held[-1])
    return torch.cat(held) if held else torch.empty(0)
