"""How many features fire per token, and how surely that is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidInput
from .base import Json, Metric, MetricBatch, need_tokens


class Sparsity(Metric):
    """L0, its spread over tokens and its standard error over documents; features fire at values > 0.

    ``l0`` is the mean k per token; ``l0_std`` (over all n tokens, divisor n), ``l0_min``, ``l0_max`` and
    ``l0_histogram`` (number of tokens with k = 0, 1, …, ``l0_max``) describe its spread. Tokens of one
    document resemble each other, so ``l0_se`` takes the document as the unit: with S_d features and n_d
    tokens in each of D documents, L0 = ΣS_d / Σn_d is a ratio and ``l0_se`` = √(D/(D−1) Σ(S_d − L0·n_d)²) /
    Σn_d (Cochran 1977, §6.3, no finite-population factor). Without document numbers every token is its own
    document and ``documents`` is ``None``; with fewer than two documents ``l0_se`` is ``None``. All sums
    are integers.
    """

    def __init__(self) -> None:
        self._histogram = torch.zeros(0, dtype=torch.int64)
        self._documents: dict[int, tuple[int, int]] = {}
        self._has_documents: bool | None = None

    def update(self, batch: MetricBatch) -> None:
        if batch.code.n == 0:
            return
        has = batch.document is not None
        if self._has_documents not in (None, has):
            raise InvalidInput(
                "some blocks come with document numbers and some without, which leaves l0_se undefined; "
                "give them for every block or for none"
            )
        self._has_documents = has
        counts = batch.code.counts().reshape(-1)
        self._add_histogram(counts)
        if batch.document is not None:
            self._add_documents(counts, batch.document.to(counts.device))

    def _add_histogram(self, counts: Tensor) -> None:
        fresh = torch.bincount(counts, minlength=len(self._histogram)).cpu()
        fresh[: len(self._histogram)] += self._histogram
        self._histogram = fresh

    def _add_documents(self, counts: Tensor, document: Tensor) -> None:
        names, slot, tokens = torch.unique(document, return_inverse=True, return_counts=True)
        features = torch.zeros_like(tokens).index_add_(0, slot, counts)
        for name, s, n in zip(names.tolist(), features.tolist(), tokens.tolist(), strict=True):
            known = self._documents.get(name, (0, 0))
            self._documents[name] = (known[0] + s, known[1] + n)

    def result(self) -> dict[str, Json]:
        per_k: list[int] = self._histogram.tolist()
        tokens = sum(per_k)
        need_tokens(tokens)
        features = sum(k * n for k, n in enumerate(per_k))
        squares = sum(k * k * n for k, n in enumerate(per_k))
        # Whole numbers up to the last division: no digit depends on the order of the tokens.
        variance = (squares * tokens - features * features) / tokens**2
        return {
            "tokens": tokens,
            "documents": len(self._documents) if self._has_documents else None,
            "l0": features / tokens,
            "l0_se": self._standard_error(features, tokens, variance),
            "l0_std": math.sqrt(variance),
            "l0_min": next(k for k, n in enumerate(per_k) if n),
            "l0_max": len(per_k) - 1,
            "l0_histogram": per_k,
        }

    def _standard_error(self, features: int, tokens: int, variance: float) -> float | None:
        units = len(self._documents) if self._has_documents else tokens
        if units < 2:
            return None
        if self._has_documents:
            l0 = features / tokens
            deviation = math.fsum((s - l0 * n) ** 2 for s, n in self._documents.values())
        else:
            deviation = variance * tokens
        return math.sqrt(units / (units - 1) * deviation) / tokens
