"""The contract of everything that yields activations: a ``Source`` hands out streams and held-out blocks."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Split = Literal["calibrate", "evaluate"]
"""The two held-out parts: thresholds are fitted on the first, every figure is measured on the second."""

BLOCK_ROWS = 1024
"""Held-out rows are always handed out in blocks of this many, so that no figure depends on a batch size."""

NO_CONTEXTS = (
    "these activations were captured from tensors, of which no contexts are kept; leave the model out, or "
    "capture from text"
)
"""What a source says that is asked for contexts and has none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some tokens.

    Attributes:
        x: [n, d_in] float32 activations.
        document: [n] int64, the document that each token comes from.
        position: [n] int64, its place in that document.
        target: [n] float32, a number per token that a rule may learn from (its text's complexity, say).
    """

    x: Tensor
    document: Tensor | None = None
    position: Tensor | None = None
    target: Tensor | None = None


class Stream(Iterator[Batch], abc.ABC):
    """Endless shuffled training batches of one size. Each row once per epoch, the order given by the seed."""

    @abc.abstractmethod
    def __next__(self) -> Batch: ...

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Where the stream is, as JSON. A stream opened with it goes on with the very next batch."""

    def close(self) -> None:
        """Release threads and files; the stream is not used again."""


class Source(abc.ABC):
    """Activations of one module of one model (or tensors made by hand)."""

    @property
    @abc.abstractmethod
    def d_in(self) -> int:
        """Width of an activation."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Where the activations come from, as JSON for the metadata of SAEs trained on them."""

    @abc.abstractmethod
    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        """Open the training part.

        Args:
            batch_size: rows per batch; every batch is full, also across epochs.
            seed: gives the order of the rows.
            state: what ``Stream.state`` returned, to go on from there.
        """

    @abc.abstractmethod
    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        """A held-out part in document order, in blocks of ``BLOCK_ROWS`` rows (the last may be smaller).

        Documents are whole units: none is in two parts. ``limit`` ends after that many rows. Only tokens that
        take part are rows; see ``left_out``.
        """

    def left_out(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        """Tokens of the same part that take no part, in order, in blocks: outliers in norm, where any are marked.

        Args:
            limit: those among the first so many rows of ``blocks`` only.
        """
        return iter(())

    def remarks(self) -> list[str]:
        """Sentences that a person should know before believing a figure of this source; none, mostly."""
        return []
