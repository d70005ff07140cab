"""Fit the inference rule of an SAE to held-out activations, so that it spends k features per token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .activations.source import Source
from .allocators.base import Calibration, measured
from .errors import InvalidInput
from .sae import SAE

LIFTED = 0.9
"""Of k: what a rule must spend by itself for its biases to be raised. Further off it has learned another k."""
_ROUNDING = 1e-3
"""Of k: what a fitted rule may spend less because a number of entries is whole."""


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
    fitted, calibration = fit(_as_trained(sae), blocks, sae.k if k is None else k)
    fitted.metadata["calibration"] = {**described(calibration), "source": source.describe()}
    return fitted.requires_grad_(False).eval()


def fit(sae: SAE, blocks: Callable[[], Iterator[Tensor]], k: float) -> tuple[SAE, Calibration]:
    """``sae.calibrate``, and where the rule has a few per cent too few positive affinities, with raised biases.

    A rule that lets every positive affinity fire in training ends a little below its k as easily as above it.
    Above, a threshold takes the rest away; below, all biases are raised by one number, ``Calibration.lift``.

    Args:
        blocks: each call iterates once over the rows, as tensors [n, d_in] in the SAE's own scale.
        k: features per token.

    Raises:
        InvalidInput: ``k`` is out of range, or there are no rows.
    """
    fitted, calibration = sae.calibrate(blocks, k)
    if not LIFTED * k <= calibration.l0 < (1 - _ROUNDING) * k or calibration.allocator.lowered(0.0) is None:
        return fitted, calibration
    typical = _typical(fitted, blocks)
    # By more than it takes: what is too much is found out and left off.
    _, ample = _raised(sae, typical).calibrate(blocks, k)
    lowered = ample.allocator.lowered(typical)
    if lowered is None or ample.l0 < (1 - _ROUNDING) * k:
        return fitted, calibration
    rule, lift = lowered[0], typical - lowered[1]
    lifted = _raised(sae, lift).with_allocator(rule)
    spent = measured(rule, lambda: map(lifted.surveyed, blocks()), k)
    return lifted, replace(spent, lift=lift, extra=ample.extra)


@torch.no_grad()
def _typical(sae: SAE, blocks: Callable[[], Iterator[Tensor]]) -> float:
    """The mean positive affinity of the first block that has any."""
    positive = (pre.at(pre.above(0.0)) for pre in map(sae.survey, blocks()))
    return next((float(values.mean()) for values in positive if len(values)), 0.0)


@torch.no_grad()
def _raised(sae: SAE, by: float) -> SAE:
    """A copy whose encoder's biases are all higher."""
    other = copy.deepcopy(sae)
    other.encoder.bias.add_(by)
    return other


def _as_trained(sae: SAE) -> SAE:
    """Without what an earlier calibration raised its biases by, so that the next does not depend on it."""
    known = sae.metadata.get("calibration") or sae.metadata.get("cut_from", {}).get("calibration", {})
    lift = float(known.get("lift", 0.0))
    return _raised(sae, -lift) if lift else sae


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
