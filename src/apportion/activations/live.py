"""``LiveSource``: activations captured while they are used, without a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidConfig, InvalidInput
from .contexts import Contexts, Cutter, Window, batch_windows
from .extract import extract_rows, row_columns
from .frame import Bos, cut_otherwise
from .items import Item
from .keep import MEDIAN_ROWS, OUTLIERS, Outliers, beyond, check_outliers, norm_bound, policy
from .models import LoadedModel, load_model
from .plan import check_target, digests_of, fingerprint
from .shuffle import Place, PooledStream, generator, join, select_rows
from .sites import find_site
from .source import BLOCK_ROWS, NO_CONTEXTS, Batch, Source, Split, Stream
from .splits import Bools, Ints, in_part, parts_of
from .store import cutter_of
from .texts import Document
from .weights import fingerprint_of

_CHUNK = 16  # documents tokenised together: a pool may end after any of them
_BLOCK_WINDOWS = 64  # contexts captured together for held-out blocks


class LiveSource(Source):
    """Activations of one module, captured anew in every epoch. Memory holds two pools of rows.

    A pool is as many consecutive documents, of a permutation of all training documents, as give
    ``buffer_rows`` rows; so a small buffer mixes few documents. The last pool of an epoch may be smaller.

    Args:
        documents: as ``load_documents`` returns them, or items of tensors.
        context, batch_size, skip_first, bos: as for ``capture_to_store``.
        outliers: rows whose norm is above so many times the median of the first rows, over the documents in
            order, take no part; None keeps all.
        heldout, split_seed, buffer_rows: as for ``StoreSource``.

    Attributes:
        module: path of the module.
        documents: the id of every document; ``Batch.document`` is an index into it.
        digests: of every document's text, as ``Text.digest``; "" for items.
    """

    def __init__(
        self,
        model: LoadedModel | str,
        module: str,
        documents: Sequence[Document | Item],
        *,
        context: int = 128,
        batch_size: int = 32,
        outliers: float | None = OUTLIERS,
        heldout: float = 0.2,
        split_seed: int = 0,
        buffer_rows: int = 65_536,
        skip_first: int = 0,
        bos: Bos = "auto",
    ) -> None:
        if batch_size < 1 or buffer_rows < 1:
            raise InvalidConfig(
                f"batch_size = {batch_size}, buffer_rows = {buffer_rows}; raise both to 1 at least"
            )
        loaded = load_model(model) if isinstance(model, str) else model
        find_site(loaded.model, module)
        self._tensors = bool(documents) and isinstance(documents[0], Item)
        cutter = cutter_of(loaded, [module], context, self._tensors, skip_first=skip_first, bos=bos)
        self.documents = [document.id for document in documents]
        self.digests = digests_of(documents)
        self._settings: dict[str, Any] = {"context": context, "heldout": heldout, "split_seed": split_seed}
        self._settings |= cut_otherwise(skip_first, bos)
        self.module, self._model, self._weights = module, loaded.name, fingerprint_of(loaded.model)
        self._parts = parts_of(self.documents, heldout, split_seed)
        train = np.flatnonzero(in_part(self._parts, "train"))
        self._pools = _LivePools(loaded, module, documents, train, cutter, batch_size, buffer_rows)
        self._outliers = check_outliers(outliers)
        self._d_in, self._left_out = self._pools.look_at_first_rows(outliers)

    @property
    def d_in(self) -> int:
        return self._d_in

    def describe(self) -> dict[str, Any]:
        counts = {"d_in": self.d_in, "documents": len(self.documents), "fingerprint": self._pools.digest}
        told = policy(outliers=self._outliers, bound=self._pools.bound)
        return {
            "kind": "live",
            "model": self._model,
            "module": self.module,
            "weights": self._weights,
            "tokens": told,
            **counts,
            **self._settings,
        }

    def remarks(self) -> list[str]:
        """Of the first rows: how many of all take no part is known only when all have been captured."""
        return [] if self._left_out is None else [self._left_out.sentence()]

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        return PooledStream(self._pools, batch_size, seed, state)

    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        windows = self._pools.windows(self._heldout(split))
        return _cut_blocks((taking for taking, _ in self._pools.batches(windows)), limit)

    def left_out(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return _cut_blocks(self._pools.left_out(self._heldout(split), limit), None)

    def contexts(self, split: Split, batch_size: int = 32, limit_rows: int | None = None) -> Iterator[Contexts]:
        """As ``StoreSource.contexts``; every context is run once to see which tokens take no part."""
        if self._tensors:
            raise InvalidInput(NO_CONTEXTS)
        windows = self._pools.marked(self._pools.windows(self._heldout(split)))
        return batch_windows(windows, batch_size, limit_rows)

    def in_training(self) -> Bools:
        """[documents] whether each belongs to the training part."""
        return in_part(self._parts, "train")

    def context_starts(self) -> tuple[Ints, Ints]:
        """As ``StoreSource.context_starts``; every document is tokenised for it."""
        windows = self._pools.windows(np.arange(len(self.documents)))
        found = np.array([(window.document, window.start) for window in windows], np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _heldout(self, split: Split) -> Ints:
        chosen = np.flatnonzero(in_part(self._parts, split))
        if len(chosen) == 0:
            raise InvalidInput(
                f"the held-out part {split!r} of {len(self.documents)} documents is empty; give more "
                "documents or hold out a larger share"
            )
        return chosen


class _LivePools:
    """Pools captured on demand; a place is an index into the epoch's permutation of training documents."""

    def __init__(
        self,
        loaded: LoadedModel,
        module: str,
        documents: Sequence[Document | Item],
        train: Ints,
        cutter: Cutter[Any],
        batch_size: int,
        buffer_rows: int,
    ) -> None:
        self._loaded, self._module, self._documents, self._train = loaded, module, documents, train
        self._cutter, self._batch_size, self._buffer = cutter, batch_size, buffer_rows
        self.digest, targets = "", None
        for document in documents:
            if not isinstance(document, type(documents[0])) or not isinstance(document, (Document, Item)):
                raise InvalidInput(f"{document!r:.60} is no Document; pass what `load_documents` returns")
            targets = check_target(document, targets)
            self.digest = fingerprint(self.digest, document)

        self._targets = bool(targets)
        self.bound: float | None = None

    def look_at_first_rows(self, outliers: float | None) -> tuple[int, Outliers | None]:
        """Width of the module, and how many of the first rows are outliers, if any; sets ``bound``.

        One context tells the width; the bound takes ``MEDIAN_ROWS`` rows.
        """
        most = 1 if outliers is None else MEDIAN_ROWS
        first: list[Window] = []
        for window in self.windows(np.arange(len(self._documents))):
            first.append(window)
            if sum(one.rows for one in first) >= most:
                break
        if not first:
            raise InvalidInput(f"the {len(self._documents)} documents hold no token; give documents with text")
        rows = self._capture(first)
        self.bound = norm_bound(rows.x[:MEDIAN_ROWS], outliers)
        out = beyond(rows.x, self.bound)
        if outliers is None or self.bound is None or not out.any():
            return rows.x.shape[1], None
        begins = np.cumsum([0, *(window.rows for window in first[:-1])])
        return rows.x.shape[1], Outliers(int(out.sum()), int(out[begins].sum()), len(out), outliers, self.bound)

    def fingerprint(self) -> dict[str, Any]:
        return {"documents": self.digest, "training": len(self._train), "buffer_rows": self._buffer}

    def load(self, seed: int, place: Place) -> tuple[Batch, Place]:
        order = self._train[generator(seed, place.epoch).permutation(len(self._train))]
        taken: list[Window] = []
        rows, at = 0, place.at
        for own in self._tokenised(order[place.at :]):
            if rows >= self._buffer:
                break
            taken += own
            rows, at = rows + sum(window.rows for window in own), at + 1
        after = Place(place.epoch, at) if at < len(order) else Place(place.epoch + 1, 0)
        if not taken:
            return Batch(torch.empty(0, 0)), after
        captured = self._capture(taken)
        shuffled = generator(seed, place.epoch, place.at).permutation(rows)
        shuffled = shuffled[~beyond(captured.x, self.bound)[shuffled]]
        return select_rows(captured, torch.from_numpy(shuffled)), after

    def windows(self, documents: Ints) -> Iterator[Window]:
        """The contexts of these documents, in this order."""
        return (window for own in self._tokenised(documents) for window in own)

    def batches(self, windows: Iterator[Window]) -> Iterator[tuple[Batch, Batch]]:
        """The rows of ``windows`` that take part and those that do not, some contexts at a time."""
        while held := list(islice(windows, _BLOCK_WINDOWS)):
            rows = self._capture(held)
            out = torch.from_numpy(beyond(rows.x, self.bound))
            yield select_rows(rows, ~out) if out.any() else rows, select_rows(rows, out)

    def left_out(self, documents: Ints, limit: int | None) -> Iterator[Batch]:
        """The rows of these documents that take no part, among the first ``limit`` that do."""
        seen = 0
        for taking, out in self.batches(self.windows(documents)) if self.bound is not None else ():
            if len(out.x):
                yield out
            seen += len(taking.x)
            if limit is not None and seen >= limit:
                return

    def marked(self, windows: Iterator[Window]) -> Iterator[Window]:
        """The same contexts, in which outliers are not kept; those without another token are left out."""
        if self.bound is None:
            yield from windows
        while held := list(islice(windows, _BLOCK_WINDOWS)):
            out, first = beyond(self._capture(held).x, self.bound), 0
            for window in held:
                own = np.flatnonzero(out[first : first + window.rows])
                first += window.rows
                if len(own) < window.rows:
                    yield window.without(own) if len(own) else window

    def _tokenised(self, documents: Ints) -> Iterator[list[Window]]:
        for at in range(0, len(documents), _CHUNK):
            numbers = documents[at : at + _CHUNK].tolist()
            found = self._cutter.windows([self._documents[number] for number in numbers], 0)
            for number, own in zip(numbers, found, strict=True):
                yield [replace(window, document=number) for window in own]

    def _capture(self, windows: Sequence[Window]) -> Batch:
        rows = extract_rows(self._loaded, [self._module], windows, self._batch_size, torch.float32)
        columns: list[NDArray[np.int32]] = list(row_columns(windows))
        document, position = (torch.from_numpy(column).long() for column in columns)
        target = None
        if self._targets:
            target = torch.tensor([self._documents[int(number)].target for number in columns[0]])
        return Batch(rows[self._module], document, position, target)


def _cut_blocks(batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    """The rows of ``batches`` in blocks of ``BLOCK_ROWS``, at most ``limit`` of them."""
    left = limit
    held: list[Batch] = []
    for batch in batches:
        held = [join([*held, batch])]
        while len(held[0].x) >= BLOCK_ROWS and (left is None or left > 0):
            size = BLOCK_ROWS if left is None else min(BLOCK_ROWS, left)
            yield select_rows(held[0], slice(0, size))
            held = [select_rows(held[0], slice(BLOCK_ROWS, None))]
            left = None if left is None else left - size
        if left is not None and left <= 0:
            return
    if held and len(held[0].x):
        yield select_rows(held[0], slice(0, left))
