"""The sums of every document, from which a cluster bootstrap draws."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInput
from .base import Json, Metric, MetricBatch, need_tokens, wide


class PerDocument(Metric):
    """Tokens, features and squared error of every document, by rising number of the document.

    ``document`` numbers them; of each, ``document_tokens`` counts its tokens, ``document_features`` their values
    > 0 and ``document_error`` is Σ‖x − x̂‖² over them in float64. So Σ ``document_features`` / Σ
    ``document_tokens`` is ``l0``, and ``fvu`` is Σ ``document_error`` over the spread. Memory grows with the
    number of documents, not of tokens.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, int, float]] = {}

    def update(self, batch: MetricBatch) -> None:
        if batch.document is None:
            raise InvalidInput(
                "the block has no document numbers, so nothing can be summed by document; "
                "give them or leave per_document out"
            )
        error = (wide(batch.x) - wide(batch.x_hat)).square().sum(-1)
        names, slot, tokens = torch.unique(
            batch.document.to(error.device), return_inverse=True, return_counts=True
        )
        features = _summed(batch.code.counts().reshape(-1).to(error.device), slot, len(names))
        errors = _summed(error, slot, len(names))
        columns = (names.tolist(), tokens.tolist(), features.tolist(), errors.tolist())
        for name, n, s, e in zip(*columns, strict=True):
            known = self._sums.get(name, (0, 0, 0.0))
            self._sums[name] = (known[0] + n, known[1] + s, known[2] + e)

    def result(self) -> dict[str, Json]:
        need_tokens(len(self._sums))
        names = sorted(self._sums)
        return {
            "document": names,
            "document_tokens": [self._sums[name][0] for name in names],
            "document_features": [self._sums[name][1] for name in names],
            "document_error": [self._sums[name][2] for name in names],
        }


def _summed(values: Tensor, slot: Tensor, n: int) -> Tensor:
    """[n] sums of ``values`` by their slot."""
    return values.new_zeros(n).index_add_(0, slot, values)
