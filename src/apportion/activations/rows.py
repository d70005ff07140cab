"""Sources over rows that can be read in any order (``SplitSource``), and that over a store (``StoreSource``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInput, without_secrets
from .contexts import Contexts, batch_windows
from .files import Folder
from .frame import cut_otherwise
from .keep import Outliers, policy
from .manifest import Manifest
from .places import model_note
from .reading import StoreReader
from .shuffle import PooledStream, RowPools, Rows
from .source import BLOCK_ROWS, NO_CONTEXTS, Batch, Source, Split, Stream
from .splits import Bools, Ints, Part, Ranges, in_part, parts_of


class SplitRows:
    """Rows of documents, divided into the three parts: what the sources of this file have in common.

    Args:
        documents: id of each document.
        begins, counts: [documents] its first row and number of rows.
        outliers: the rows that take no part, ascending.
    """

    def __init__(
        self,
        rows: Rows,
        documents: list[str],
        begins: Ints,
        counts: Ints,
        outliers: Ints,
        heldout: float,
        seed: int,
        buffer: int,
    ) -> None:
        self._rows, self._documents, self._begins, self._counts = rows, documents, begins, counts
        self._outliers = outliers
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
        return (self._rows.gather(ranges.take(np.arange(*span))) for span in _spans(n))

    def left_out(self, split: Split, limit: int | None) -> Iterator[Batch]:
        """See ``Source.left_out``."""
        rows, ranges = self._all_ranges(split).inside(self._outliers), self._ranges(split)
        if limit is not None and limit < ranges.n:
            rows = rows[rows < ranges.take(np.array([limit]))[0]]
        return (self._rows.gather(rows[slice(*span)]) for span in _spans(len(rows)))

    def _ranges(self, part: Part) -> Ranges:
        """The rows of a part that take part."""
        return self._all_ranges(part).without(self._outliers)

    def _all_ranges(self, part: Part) -> Ranges:
        chosen = in_part(self.parts, part)
        return Ranges.of(self._begins[chosen], self._counts[chosen])


def _spans(n: int) -> Iterator[tuple[int, int]]:
    """Consecutive blocks of ``BLOCK_ROWS`` places that cover n."""
    return ((begin, min(begin + BLOCK_ROWS, n)) for begin in range(0, n, BLOCK_ROWS))


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

    def left_out(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return self._split.left_out(split, limit)


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
        keep_outliers: let tokens take part that the capture marked as outliers in norm.
        verify: compare the SHA-256 of every shard with the manifest before any row is handed out.

    Raises: ``StorageFailure``, ``CorruptStore`` naming the shard, ``InvalidInput`` for a newer format,
    ``UnknownName`` for the module; reading raises ``NonFiniteActivations`` naming shard and row.

    Attributes:
        manifest: what the store says of itself.
        module: the module read.
        documents: the id of every document; ``Batch.document`` is an index into it.
        digests: of every document's text, as ``Text.digest``; "" where the store of before has none.
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
        keep_outliers: bool = False,
        verify: bool = True,
    ) -> None:
        self._path, self._heldout, self._seed = str(path), heldout, split_seed
        self._last_only, self._keep_outliers = last_only, keep_outliers
        self._reader = StoreReader(Folder(path), module, verify)
        self.manifest: Manifest = self._reader.manifest
        self.module = self._reader.module
        self.documents, self.digests = self._reader.documents, self._reader.digests
        self._end = self.manifest.rows if max_rows is None else min(max_rows, self.manifest.rows)
        names, begins, counts = self._last_rows() if last_only else self._all_rows()
        marked = self._reader.outliers()
        self._outliers = marked[:0] if keep_outliers else marked[marked < self._end]
        self._split = SplitRows(
            self._reader, names, begins, counts, self._outliers, heldout, split_seed, buffer_rows
        )

    @property
    def d_in(self) -> int:
        return self._reader.d_in

    def describe(self) -> dict[str, Any]:
        settings = self.manifest.settings
        # A store of before there were fingerprints of weights has none.
        weights = {"weights": self.manifest.weights} if self.manifest.weights else {}
        rows: dict[str, Any] = {"last_only": True} if self._last_only else {}
        return (
            rows
            | weights
            | {
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
                **cut_otherwise(settings.skip_first, settings.bos),
                **self._tokens(),
            }
        )

    def _tokens(self) -> dict[str, Any]:
        """Which tokens take part, for ``describe``; a store of before that was a policy says nothing."""
        settings = self.manifest.settings
        if settings.outliers is None and self.manifest.bounds is None:
            return {}
        told = policy(
            outliers=settings.outliers,
            bound=(self.manifest.bounds or {}).get(self.module),
            left_out=len(self._outliers),
            keep_outliers=self._keep_outliers,
        )
        return {"tokens": told}

    def remarks(self) -> list[str]:
        note = model_note(self.manifest.model)
        about = [f"{self.manifest.model} is {note}"] if note else []
        if len(self._outliers) == 0:
            return about
        document, start = self.context_starts()
        firsts = self._reader.begins[document] + start
        multiple, bounds = self.manifest.settings.outliers, self.manifest.bounds
        assert multiple is not None and bounds is not None  # else no row was marked
        first = int(np.isin(self._outliers, firsts).sum())
        out = Outliers(len(self._outliers), first, self._end, multiple, bounds[self.module])
        return [*about, out.sentence()]

    def in_training(self) -> Bools:
        """[documents] whether each belongs to the training part."""
        return in_part(parts_of(self.documents, self._heldout, self._seed), "train")

    def context_starts(self) -> tuple[Ints, Ints]:
        """Document, and place of the first row in it, of every context of the store, each [contexts]."""
        return self._reader.context_starts()

    def rows(self) -> Iterator[Batch]:
        """All rows that take part in order, those of the training part included, in blocks of ``BLOCK_ROWS``."""
        whole = Ranges.of(np.zeros(1, np.int64), np.array([self._end], np.int64)).without(self._outliers)
        for span in _spans(whole.n):
            yield self._reader.gather(whole.take(np.arange(*span)))

    def contexts(self, split: Split, batch_size: int = 32, limit_rows: int | None = None) -> Iterator[Contexts]:
        """What the model was fed for a held-out part, to run it again.

        The kept positions of these contexts, in order, are the rows of ``blocks(split)``, so that tokens which
        take no part stay as the model makes them. The last context is the one that brings ``limit_rows`` rows.

        Raises: ``InvalidInput`` for a store captured from tensors, which keeps none.
        """
        if self.manifest.settings.inputs == "tensors":
            raise InvalidInput(NO_CONTEXTS)
        if self._last_only:
            raise InvalidInput("only last tokens are read, no whole contexts; open the store without last_only")
        windows = self._reader.windows(in_part(self._split.parts, split), self._end, self._outliers)
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
