"""Scores of texts as targets of the stream: aligned with a source, on one scale, complexity upwards."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np

from ..activations import LabelledSource, Source
from ..activations.splits import Bools, Ints
from ..complexity import Scores, fit_scale
from ..errors import InvalidInput


class TextSource(Protocol):
    """A source that knows its documents, as ``StoreSource``, ``LiveSource`` and ``TensorSource`` do."""

    documents: list[str]

    def in_training(self) -> Bools: ...


def with_scores(source: Source, scores: Scores, *, standardise: bool = True) -> LabelledSource:
    """``source``, each of its tokens with the score of its document or context as target.

    Scores are turned so that larger means more complex and, unless told otherwise, put on the scale on which
    those of the training texts have mean 0 and deviation 1. Tokens of texts whose scoring failed have NaN.

    Args:
        source: its documents, and contexts for scores of contexts, have the ids and places that were scored.

    Raises:
        InvalidInput: texts have no score, occur twice or are not those that were scored, or the training texts
            have fewer than two different scores; the message counts them.
    """
    if not hasattr(source, "documents") or not hasattr(source, "in_training"):
        raise InvalidInput(
            f"a {type(source).__name__} does not say whose documents its rows are of; use StoreSource, "
            "LiveSource or TensorSource"
        )
    texts = cast(TextSource, source)
    document, start, by_context = _texts(texts, scores)
    ids = [texts.documents[number] for number in document]
    digests: list[str] = getattr(source, "digests", [])
    known_as = [digests[number] for number in document] if digests else None
    values = scores.align(ids, start.tolist() if by_context else None, documents=known_as)
    known = np.isfinite(values)
    if not known.any():
        raise InvalidInput(f"none of the {len(values):,} texts has a score; score them again")
    scale = fit_scale(values[known & texts.in_training()[document]], scores.header.direction)
    about: dict[str, Any] = {
        "scorer": scores.header.scorer,
        "settings": scores.header.settings,
        "direction": scale.direction,
        "unscored": int((~known).sum()),
    }
    if not standardise:
        return LabelledSource(source, document, start, scale.direction * values, about)
    about |= {"mean": scale.mean, "std": scale.std}
    return LabelledSource(source, document, start, scale(values), about)


def _texts(source: TextSource, scores: Scores) -> tuple[Ints, Ints, bool]:
    """Document and start, each [texts], of what the scores belong to, and whether that is contexts."""
    if any(row.start is not None for row in scores.rows):
        if not hasattr(source, "context_starts"):
            raise InvalidInput(
                f"the scores belong to contexts and a {type(source).__name__} has none; score whole documents"
            )
        return *source.context_starts(), True
    document = np.arange(len(source.documents))
    return document, np.zeros_like(document), False
