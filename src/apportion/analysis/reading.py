"""Which rows of a part an analysis reads."""

from __future__ import annotations

import numpy as np
import torch

from ..activations.labels import LabelledSource
from ..activations.source import Batch, Source
from ..errors import InvalidInput


def contexts_of(source: Source) -> LabelledSource:
    """The source with the place of the first row of its context as each row's target."""
    if not hasattr(source, "documents"):
        raise InvalidInput(
            f"a {type(source).__name__} does not say whose documents its rows are of; use a StoreSource"
        )
    if hasattr(source, "context_starts"):
        document, start = source.context_starts()
    else:
        document = np.arange(len(source.documents))
        start = np.zeros_like(document)
    return LabelledSource(source, document, start, start.astype(np.float64))


def taken(batch: Batch, rows: torch.Tensor) -> Batch:
    """Those ``rows [n]`` bool of a batch that knows its documents."""
    assert batch.document is not None and batch.position is not None
    return Batch(batch.x[rows], batch.document[rows], batch.position[rows])


def chosen(contexts: LabelledSource, batch: Batch, every: int) -> torch.Tensor:
    """[rows] bool, whether each is in one of each ``every``-th context."""
    assert batch.document is not None and batch.position is not None
    return contexts.text_of(batch.document, batch.position) % every == 0
