"""From a trained SAE to one for inference: frozen, calibrated on held-out tokens, input scale folded in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..activations.source import Source
from ..sae import SAE
from .step import Run


def finish(run: Run, source: Source, scale: float, limit: int | None, history: dict[str, Any]) -> SAE:
    """The SAE to save.

    Args:
        run: after its last step.
        source: its ``calibrate`` part is used.
        scale: what training multiplied activations by.
        limit: calibration tokens; None for all.
        history: how it was trained, JSON, for the metadata.
    """

    def blocks() -> Iterator[Tensor]:
        for batch in source.blocks("calibrate", limit):
            yield batch.x.to(run.sae.device) * scale

    sae, calibration = run.sae.freeze().calibrate(blocks, run.sae.k)
    sae = sae.fold(scale).requires_grad_(False).eval()
    sae.metadata = {
        "source": source.describe(),
        "training": history,
        "calibration": {
            "k": calibration.k,
            "l0": calibration.l0,
            "tokens": calibration.tokens,
            "short": calibration.short,
            **calibration.extra,
        },
    }
    return sae
