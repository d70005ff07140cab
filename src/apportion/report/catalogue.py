"""The features of one SAE as JSON columns, small enough for thousands of them in a page."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sae import SAE
from .directions import logits, neighbours
from .firings import Firings, Window
from .survey import Survey
from .tokens import Words

CONTEXTS, NEIGHBOURS, TOKENS = 8, 6, 8
"""Contexts, neighbours, and tokens raised and lowered, that are shown of each feature."""
LEVELS = "".join(chr(code) for code in range(33, 127) if chr(code) not in "\"'&<>\\")
"""A character for each strength of a feature on a token, from none to its largest value, none of which needs
escaping: so a context costs the page a byte for each token, however many of them the feature fires on."""


def catalogue(
    sae: SAE,
    survey: Survey,
    most: int,
    firings: Firings | None = None,
    words: Words | None = None,
    W_U: Tensor | None = None,
) -> dict[str, list[Any]]:
    """A column for each thing that the page shows of a feature; the most worth having first.

    Args:
        most: features to list, those with the largest gain.
        firings: where features fire; without it nothing is said of contexts.
        words: takes the tokens that directions raise and lower.
        W_U: [vocabulary, d_in] the unembedding; without it (or words) nothing is said of logits.

    Returns:
        ``feature``, ``density``, ``gain``; ``neighbours``, pairs of feature and cosine, flat;
        with ``firings`` ``peak``, the largest value (None where the text holds none), and ``contexts``, each
        [first row, place of the strongest token, one of ``LEVELS`` for each token]; with ``W_U`` ``raised`` and
        ``lowered``, pairs of word and logit.
    """
    chosen = survey.gain.sort(descending=True, stable=True).indices[:most]
    near, cosine = neighbours(sae.W_dec, chosen.to(sae.device), NEIGHBOURS)
    columns: dict[str, list[Any]] = {
        "feature": chosen.tolist(),
        "density": _rounded(survey.density[chosen]),
        "gain": _rounded(survey.gain[chosen]),
        "neighbours": _pairs(near.tolist(), cosine),
    }
    if firings is not None:
        strongest = [firings.strongest(feature, CONTEXTS) for feature in columns["feature"]]
        peaks = [float(own[0].values.max()) if own else None for own in strongest]
        columns["peak"] = [None if peak is None else _short(peak) for peak in peaks]
        columns["contexts"] = [
            [_context(window, peak) for window in own] if peak is not None else []
            for own, peak in zip(strongest, peaks, strict=True)
        ]
    if W_U is not None and words is not None:
        up, down = logits(sae.W_dec[chosen.to(sae.device)].to(W_U.device), W_U, TOKENS)
        for name, (tokens, values) in (("raised", up), ("lowered", down)):
            columns[name] = _pairs([words.of(row) for row in tokens.tolist()], values)
    return columns


def _context(window: Window, peak: float) -> list[int | str]:
    most = len(LEVELS) - 1
    levels = [LEVELS[0]] * (window.last - window.first)
    for row, value in zip(window.rows.tolist(), window.values.tolist(), strict=True):
        levels[row - window.first] = LEVELS[max(round(value / peak * most), 1)]
    return [window.first, window.peak - window.first, "".join(levels)]


def _pairs(names: list[list[int]], values: Tensor) -> list[list[float]]:
    """Each row's names and values, one after the other."""
    return [
        [number for name, value in zip(row, own, strict=True) for number in (name, _short(value))]
        for row, own in zip(names, values.tolist(), strict=True)
    ]


def _rounded(values: Tensor) -> list[float]:
    return [_short(value) for value in values.to(torch.float64).tolist()]


def _short(value: float) -> float:
    """Three digits, which is what the page shows."""
    return float(f"{value:.3g}")
