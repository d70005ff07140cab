"""``LabelledSource``: another source's rows, each with the number of the text that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .source import Batch, Source, Split, Stream
from .splits import Ints

_MOST_ROWS = 1 << 32
"""Of one document: a document and a place in it make one number."""


class LabelledSource(Source):
    """The rows of ``source`` with ``Batch.target`` from the text, a document or a context, that each is of.

    Args:
        source: its batches say document and position.
        document, start: [texts] index of the document and place of the first row in it, where each text begins;
            a text ends where the next one of its document begins.
        values: [texts] the numbers, NaN where there is none; rows of no text get NaN too.
        about: where the numbers come from, JSON.

    Attributes:
        document, values: [texts] document and number of each text, in the order of ``text_of``.
    """

    def __init__(
        self,
        source: Source,
        document: Ints,
        start: Ints,
        values: NDArray[np.float64],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self._about = source, dict(about or {})
        keys = document.astype(np.int64) * _MOST_ROWS + start
        order = np.argsort(keys)
        self.document, self.values = document[order], values[order]
        self._keys, self._values = torch.from_numpy(keys[order]), torch.from_numpy(values[order]).float()

    @property
    def d_in(self) -> int:
        return self.source.d_in

    def describe(self) -> dict[str, Any]:
        digest = hashlib.blake2b(self._keys.numpy().tobytes() + self._values.numpy().tobytes(), digest_size=16)
        targets = {"texts": len(self._keys), "fingerprint": digest.hexdigest(), **self._about}
        return self.source.describe() | {"targets": targets}

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        return _LabelledStream(self.source.stream(batch_size, seed, state), self)

    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return (self.label(batch) for batch in self.source.blocks(split, limit))

    def left_out(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return (self.label(batch) for batch in self.source.left_out(split, limit))

    def remarks(self) -> list[str]:
        return self.source.remarks()

    def label(self, batch: Batch) -> Batch:
        """The batch with its targets."""
        assert batch.document is not None and batch.position is not None
        at = self.text_of(batch.document, batch.position)
        return replace(batch, target=torch.where(at >= 0, self._values[at], torch.nan))

    def text_of(self, document: Tensor, position: Tensor) -> Tensor:
        """[n] the text of each row, numbered by document and start; -1 for none."""
        at = torch.searchsorted(self._keys, document * _MOST_ROWS + position, right=True) - 1
        return torch.where((at >= 0) & (self._keys[at] // _MOST_ROWS == document), at, -1)


class _LabelledStream(Stream):
    def __init__(self, inner: Stream, source: LabelledSource) -> None:
        self._inner, self._source = inner, source

    def __next__(self) -> Batch:
        return self._source.label(next(self._inner))

    def state(self) -> dict[str, Any]:
        return self._inner.state()

    def close(self) -> None:
        self._inner.close()
