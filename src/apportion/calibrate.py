"""Fit the inference rule of an SAE to held-out activations, so that it spends k features per token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .activations.source import Source
from .allocators.base import Calibration
from .errors import InvalidInput
from .sae import SAE


def calibrate(sae: SAE, source: Source, k: float | None = None, *, limit: int | None = None) -> SAE:
    """A frozen copy of ``sae`` whose rule is fitted on the calibration part of ``source``.

    What ``ap.train`` does at its end; for an SAE that was cut to a prefix, or meets other activations.

    Args:
        sae: one that takes raw activations, as those that ``ap.train`` returns and ``ap.load`` reads.
        k: features per token; None for what it was meant to spend.
        limit: use only the first so many rows.

    Returns:
        An SAE without gradients; what the fit came to is in ``metadata["calibration"]``.

    Raises:
        InvalidInput: widths differ, ``k`` is out of range, or nothing is held out to calibrate on.
    """
    if source.d_in != sae.d_in:
        raise InvalidInput(
            f"the source has activations of width {source.d_in} and the SAE reads width {sae.d_in}; "
            "calibrate it on the module it was trained on"
        )

    def blocks() -> Iterator[Tensor]:
        for batch in source.blocks("calibrate", limit):
            yield batch.x.to(sae.device)

    if next(blocks(), None) is None:
        raise InvalidInput("no documents are held out to calibrate on; raise the held-out share of the source")
    fitted, calibration = _as_trained(sae).calibrate(blocks, sae.k if k is None else k)
    fitted.metadata["calibration"] = {**described(calibration), "source": source.describe()}
    return fitted.requires_grad_(False).eval()


def _as_trained(sae: SAE) -> SAE:
    """Without what an earlier calibration raised its biases by, so that the next does not depend on it."""
    known = sae.metadata.get("calibration") or sae.metadata.get("cut_from", {}).get("calibration", {})
    lift = float(known.get("lift", 0.0))
    return sae.raised(-lift) if lift else sae


def described(calibration: Calibration, scale: float = 1.0) -> dict[str, Any]:
    """What a calibration came to, as JSON for the metadata.

    Args:
        scale: of the activations that it saw, over raw ones.
    """
    lift = {"lift": calibration.lift / scale} if calibration.lift else {}
    return {
        "k": calibration.k,
        "l0": calibration.l0,
        "tokens": calibration.tokens,
        "short": calibration.short,
        **lift,
        **calibration.extra,
    }
