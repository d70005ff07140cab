"""Sources over rows that can be read in any order: a store on disk (``StoreSource``) or a tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidInput, without_secrets
from .contexts import Contexts, batch_windows
from .files import Folder
from .manifest import Manifest
from .reading import StoreReader
from .shuffle import PooledStream, RowPools, Rows
from .source import BLOCK_ROWS, NO_CONTEXTS, Batch, Source, Split, Stream
from .splits import Bools, Ints, Ranges, in_part, parts_of

_DOCUMENT_ROWS = 64  # rows per document of a tensor that names none


class SplitRows:
    """Rows of documents, divided into the three parts: what the sources of this file have in common.

    Args:
        documents: id of each document.
        begins, counts: [documents] its first row and number of rows.
    """

    def __init__(
        self,
        rows: Rows,
        documents: list[str],
        begins: Ints,
        counts: Ints,
        heldout: float,
        seed: int,
        buffer: int,
    ) -> None:
        self._rows, self._documents, self._begins, self._counts = rows, documents, begins, counts
        self.parts = parts_of(documents, heldout, seed)
        train = self._ranges("train")
        self.n_train = train.n
        self._pools = RowPools(rows, train, buffer)

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None) -> Stream:
        """See ``Source.stream``."""
        return PooledStream(self._pools, batch_size, seed, state)

    def blocks(self, split: Split, limit: int | None) -> Iterator[Batch]:
        """See ``Source.blocks``. Raises ``InvalidInput`` for a part without a row."""
        ranges = self._ranges(split)
        if ranges.n == 0:
            raise InvalidInput(
                f"the held-out part {split!r} of {len(self._documents)} documents holds no row; give more "
                "documents or hold out a larger share"
            )
        n = ranges.n if limit is None else min(limit, ranges.n)
        ends = (min(begin + BLOCK_ROWS, n) for begin in range(0, n, BLOCK_ROWS))
        spans = zip(range(0, n, BLOCK_ROWS), ends, strict=True)
        return (self._rows.gather(ranges.take(np.arange(*span))) for span in spans)

    def _ranges(self, part: Any) -> Ranges:
        chosen = in_part(self.parts, part)
        return Ranges.of(self._begins[chosen], self._counts[chosen])


class SplitSource(Source):
    """A source whose rows lie in ``SplitRows``: what is read from it, and how, is up to them."""

    _split: SplitRows

    @property
    def n_train(self) -> int:
        """Rows of the training part."""
        return self._split.n_train

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        return self._split.stream(batch_size, seed, state)

    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return self._split.blocks(split, limit)


class StoreSource(SplitSource):
    """The activations of one module of a store.

    Args:
        path: the folder that ``capture_to_store`` wrote, or its fsspec URL.
        module: which module; None for the only one.
        heldout: share of the documents kept from training, half for "calibrate" and half for "evaluate".
        split_seed: chooses these documents, each by itself: the same id is always in the same part.
        buffer_rows: rows in memory to shuffle among (twice that, with the ones being read).
        max_rows: use only the first rows of the store.
        last_only: use only the last row of every context, as AdaptiveK was published.
        verify: compare the SHA-256 of every shard with the manifest before any row is handed out.

    Raises: ``StorageFailure``, ``CorruptStore`` naming the shard, ``InvalidInput`` for a newer format,
    ``UnknownName`` for the module; reading raises ``NonFiniteActivations`` naming shard and row.

    Attributes:
        manifest: what the store says of itself.
        module: the module read.
        documents: the id of every document; ``Batch.document`` is an index into it.
        n_train: rows in the training part.
    """

    def __init__(
        self,
        path: str | Path,
        module: str | None = None,
        *,
        heldout: float = 0.2,
        split_seed: int = 0,
        buffer_rows: int = 65_536,
        max_rows: int | None = None,
        last_only: bool = False,
        verify: bool = True,
    ) -> None:
        self._path, self._heldout, self._seed = str(path), heldout, split_seed
        self._last_only = last_only
        self._reader = StoreReader(Folder(path), module, verify)
        self.manifest: Manifest = self._reader.manifest
        self.module = self._reader.module
        self.documents = self._reader.documents
        self._end = self.manifest.rows if max_rows is None else min(max_rows, self.manifest.rows)
        names, begins, counts = self._last_rows() if last_only else self._all_rows()
        self._split = SplitRows(self._reader, names, begins, counts, heldout, split_seed, buffer_rows)

    @property
    def d_in(self) -> int:
        return self._reader.d_in

    def describe(self) -> dict[str, Any]:
        settings = self.manifest.settings
        rows = {"last_only": True} if self._last_only else {}
        return rows | {
            "kind": "store",
            "path": without_secrets(self._path),
            "model": self.manifest.model,
            "module": self.module,
            "d_in": self.d_in,
            "rows": self._end,
            "documents": self.manifest.documents,
            "fingerprint": self.manifest.fingerprint,
            "dtype": self.manifest.dtype,
            "context": settings.context,
            "data": settings.data,
            "heldout": self._heldout,
            "split_seed": self._seed,
        }

    def in_training(self) -> Bools:
        """[documents] whether each belongs to the training part."""
        return in_part(parts_of(self.documents, self._heldout, self._seed), "train")

    def context_starts(self) -> tuple[Ints, Ints]:
        """Document, and place of the first row in it, of every context of the store, each [contexts]."""
        return self._reader.context_starts()

    def rows(self) -> Iterator[Batch]:
        """All rows of the store in order, those of the training part included, in blocks of ``BLOCK_ROWS``."""
        for first in range(0, self._end, BLOCK_ROWS):
            yield self._reader.gather(np.arange(first, min(first + BLOCK_ROWS, self._end)))

    def contexts(self, split: Split, batch_size: int = 32, limit_rows: int | None = None) -> Iterator[Contexts]:
        """What the model was fed for a held-out part, to run it again.

        The kept positions of these contexts, in order, are the rows of ``blocks(split)``. The last context is
        the one that brings ``limit_rows`` of them.

        Raises: ``InvalidInput`` for a store captured from tensors, which keeps none.
        """
        if self.manifest.settings.inputs == "tensors":
            raise InvalidInput(NO_CONTEXTS)
        if self._last_only:
            raise InvalidInput("only last tokens are read, no whole contexts; open the store without last_only")
        windows = self._reader.windows(in_part(self._split.parts, split), self._end)
        return batch_windows(windows, batch_size, limit_rows)

    def _all_rows(self) -> tuple[list[str], Ints, Ints]:
        """Ids, first rows and numbers of rows of the documents."""
        begins = self._reader.begins
        return self.documents, begins, np.minimum(self._reader.counts, np.maximum(self._end - begins, 0))

    def _last_rows(self) -> tuple[list[str], Ints, Ints]:
        """The same of contexts of which only the last row is left, under the ids of their documents."""
        document, start = self.context_starts()
        firsts = self._reader.begins[document] + start
        lasts = np.append(firsts[1:], self.manifest.rows) - 1
        there = lasts < self._end
        names = [self.documents[number] for number in document[there]]
        return names, lasts[there], np.ones(int(there.sum()), np.int64)


class TensorSource(SplitSource):
    """Activations held in memory.

    Args:
        x: [n, d_in], any floating type; kept as it is, handed out as float32.
        document: [n] integers, the rows of a document being consecutive; None for documents of 64 rows.
        target: [n] a number per row.
        heldout, split_seed, buffer_rows: as for ``StoreSource``; a document's id is its number.

    Raises: ``InvalidInput`` for another shape, a NaN or a document whose rows are not consecutive.

    Attributes:
        documents: the id of every document, in order.
        n_train: rows in the training part.
    """

    def __init__(
        self,
        x: Tensor,
        document: Tensor | None = None,
        target: Tensor | None = None,
        *,
        heldout: float = 0.2,
        split_seed: int = 0,
        buffer_rows: int = 65_536,
    ) -> None:
        _check_tensor(x, document, target)
        self._heldout, self._seed = heldout, split_seed
        numbers = torch.arange(len(x)) // _DOCUMENT_ROWS if document is None else document.cpu().long()
        ids, counts = torch.unique_consecutive(numbers, return_counts=True)
        if len(ids.unique()) != len(ids):
            raise InvalidInput("the rows of a document are not consecutive; sort the rows by document")
        self.documents = [str(int(number)) for number in ids]
        sizes = counts.numpy()
        begins = np.concatenate([[0], sizes.cumsum()[:-1]]).astype(np.int64)
        self._rows = _TensorRows(x, numbers, target)
        self._split = SplitRows(self._rows, self.documents, begins, sizes, heldout, split_seed, buffer_rows)

    @property
    def d_in(self) -> int:
        return self._rows.x.shape[1]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "tensor",
            "fingerprint": self._rows.fingerprint(),
            "d_in": self.d_in,
            "rows": len(self._rows.x),
            "documents": len(self.documents),
            "heldout": self._heldout,
            "split_seed": self._seed,
        }

    def in_training(self) -> Bools:
        """[documents] whether each belongs to the training part."""
        return in_part(self._split.parts, "train")


class _TensorRows:
    """Rows of tensors. ``position`` counts from the first row of the document."""

    def __init__(self, x: Tensor, document: Tensor, target: Tensor | None) -> None:
        self.x, self._document = x.detach(), document
        self._target = None if target is None else target.detach()
        _, inverse, counts = torch.unique_consecutive(document, return_inverse=True, return_counts=True)
        self._position = torch.arange(len(x)) - (counts.cumsum(0) - counts)[inverse]

    def fingerprint(self) -> str:
        """A hash of all rows, so that a training does not go on with other ones."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.x, self._document, self._target):
            if column is not None:
                digest.update(column.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def gather(self, rows: Ints) -> Batch:
        at = torch.from_numpy(rows)
        target = None if self._target is None else self._target[at.to(self._target.device)].float()
        x = self.x.index_select(0, at.to(self.x.device)).float()
        return Batch(x, self._document[at], self._position[at], target)


def _check_tensor(x: Tensor, document: Tensor | None, target: Tensor | None) -> None:
    if x.ndim != 2 or not x.is_floating_point() or len(x) == 0:
        raise InvalidInput(
            f"activations are a {x.dtype} tensor of shape {tuple(x.shape)}; expected floating [n, d_in] with "
            "n > 0: reshape them"
        )
    for name, column in (("document", document), ("target", target)):
        if column is not None and column.shape != x.shape[:1]:
            raise InvalidInput(
                f"{name} has shape {tuple(column.shape)}; expected ({len(x)},), one entry per row: reshape it"
            )
    bad = (~torch.isfinite(x).all(1)).nonzero()
    if len(bad):
        raise InvalidInput(f"row {int(bad[0])} of the activations is not finite; drop or repair such rows")
