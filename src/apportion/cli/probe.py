"""``apportion score --probe``: how linear complexity is in each captured module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..activations import LabelledSource, StoreSource
from ..activations.files import Folder
from ..activations.manifest import read_manifest
from ..activations.pooling import TextPools
from ..complexity import Scores
from ..complexity.probe import fit_probe, judge_probe
from ..progress import bar
from ..training import with_scores
from .output import shown_here

TABLE = ("module", "pooling", "texts", "penalty", "cv_rmse", "rmse", "pearson", "spearman", "r2", "best")
MOST_TOKENS = 20_000
"""That a probe of every token is fitted to, taken at equal distances."""


def probe_rows(store: str, scores: Scores, heldout: float) -> list[dict[str, Any]]:
    """One row per module of the store and pooling, measured on held-out texts.

    Probes are fitted to training texts, standardised scores, complexity upwards. ``best`` marks the row that the
    cross-validation on training texts would choose. A probe of every token predicts a text by the mean of its
    tokens' predictions.
    """
    rows: list[dict[str, Any]] = []
    modules = read_manifest(Folder(store)).modules
    for number, module in enumerate(bar(modules, unit="module", shown=shown_here())):
        source = StoreSource(store, module, heldout=heldout, verify=number == 0)
        rows += _rows_of(module, source, with_scores(source, scores))
    best = min(rows, key=lambda row: float(row["cv_rmse"]))
    return [{**row, "best": "yes" if row is best else ""} for row in rows]


def _rows_of(module: str, source: StoreSource, labelled: LabelledSource) -> Iterator[dict[str, Any]]:
    pools = TextPools(len(labelled.values), source.d_in, every=math.ceil(source.manifest.rows / MOST_TOKENS))
    for batch in source.rows():
        assert batch.document is not None and batch.position is not None
        pools.add(batch.x, labelled.text_of(batch.document, batch.position))
    usable = np.isfinite(labelled.values) & (pools.counts.numpy() > 0)
    training = source.in_training()[labelled.document]
    kept, left = np.flatnonzero(usable & training), np.flatnonzero(usable & ~training)
    for pooling in ("last", "mean", "every"):
        inputs = (pools.last if pooling == "last" else pools.mean).numpy()
        rows = text = None
        if pooling == "every":
            tokens, text = (part.numpy() for part in pools.tokens)
            own = np.isin(text, kept)
            rows, text = tokens[own], np.searchsorted(kept, text[own])
        probe = fit_probe(inputs[kept], labelled.values[kept], rows, text)
        report = judge_probe(probe(inputs[left]), labelled.values[left])
        fitted = {"module": module, "pooling": pooling, "penalty": probe.penalty, "cv_rmse": probe.cv_rmse}
        yield {**fitted, "training_texts": len(kept), **report.as_dict()}
