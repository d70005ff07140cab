"""Fit the inference rule of an SAE to held-out activations, so that it spends k features per token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .activations.source import Source
from .affinities import Rows, Survey
from .allocators.base import Calibration, measured
from .errors import InvalidInput
from .metrics.base import Moments, unexplained
from .sae import SAE

LIFTED = 0.9
"""Of k: what a rule must spend by itself for its biases to be raised. Further off it has learned another k."""
FVU_TOKENS = 65_536
"""Calibration tokens on which the reconstruction is measured before and after."""
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

    def blocks() -> Iterator[Rows]:
        for batch in source.blocks("calibrate", limit):
            yield batch.x.to(sae.device), batch.document

    if next(blocks(), None) is None:
        raise InvalidInput("no documents are held out to calibrate on; raise the held-out share of the source")
    fitted, calibration = fit(_as_trained(sae), blocks, sae.k if k is None else k)
    fitted.metadata["calibration"] = {**described(calibration), "source": source.describe()}
    return fitted.requires_grad_(False).eval()


def fit(sae: SAE, blocks: Callable[[], Iterator[Rows]], k: float) -> tuple[SAE, Calibration]:
    """``sae.calibrate``, and where the rule has a few per cent too few positive affinities, with raised biases.

    A rule that lets every positive affinity fire in training ends a little below its k as easily as above it.
    Above, a threshold takes the rest away; below, all biases are raised by one number, ``Calibration.lift``.
    What the fit does to the reconstruction stands in ``extra``: ``fvu_before`` and ``fvu``, on the first rows.

    Args:
        blocks: each call iterates once over the rows, as tensors [n, d_in] in the SAE's own scale, or as pairs of
            these and the documents [n] of the rows.
        k: features per token.

    Raises:
        InvalidInput: ``k`` is out of range, or there are no rows.
    """
    fitted, calibration = _fitted(sae, blocks, k)
    before, after = _unexplained((sae.freeze(), fitted), blocks)
    return fitted, replace(calibration, extra={**calibration.extra, "fvu_before": before, "fvu": after})


def _fitted(sae: SAE, blocks: Callable[[], Iterator[Rows]], k: float) -> tuple[SAE, Calibration]:
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
    spent = measured(rule, Survey(partial(lifted.surveyed, settle=True), blocks), k)
    return lifted, replace(spent, lift=lift, unseen=ample.unseen, extra=ample.extra)


@torch.no_grad()
def _unexplained(saes: Sequence[SAE], blocks: Callable[[], Iterator[Rows]]) -> list[float | None]:
    """The FVU of each on the first ``FVU_TOKENS`` rows; None where they do not vary."""
    spread, errors = Moments(), [0.0] * len(saes)
    for x in map(_rows, blocks()):
        if spread.n >= FVU_TOKENS:
            break
        x = x[: FVU_TOKENS - spread.n]
        if not len(x):
            continue
        spread.update(x)
        for which, sae in enumerate(saes):
            x_hat = sae.restored(sae.read(x))
            errors[which] += float((x - x_hat).double().square().sum())
    try:
        return [unexplained(error, spread) for error in errors]
    except InvalidInput:  # the rows are all equal
        return [None for _ in errors]


def _rows(block: Rows) -> Tensor:
    return block[0] if isinstance(block, tuple) else block


@torch.no_grad()
def _typical(sae: SAE, blocks: Callable[[], Iterator[Rows]]) -> float:
    """The mean positive affinity of the first block that has any."""
    positive = (pre.at(pre.above(0.0)) for pre in map(sae.survey, map(_rows, blocks())))
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

    ``l0`` is the figure to state: of tokens that the rule was not fitted on, where it was fitted at all;
    ``l0_fitted`` is that of all calibration tokens.

    Args:
        scale: of the activations that it saw, over raw ones.
    """
    lift = {"lift": calibration.lift / scale} if calibration.lift else {}
    unseen = calibration.unseen
    return {
        "k": calibration.k,
        "l0": unseen.l0 if unseen else calibration.l0,
        "l0_se": unseen.se if unseen else None,
        "l0_fitted": calibration.l0,
        "folds": unseen.folds if unseen else 1,
        "tokens": calibration.tokens,
        "short": calibration.short,
        **lift,
        **calibration.extra,
    }
