"""``StreamedSource``: training rows captured while they are used, from documents that no memory or disk holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidConfig, InvalidInput
from ..progress import Shown
from .contexts import Contexts, Cutter, Window
from .extract import extract_rows, row_columns
from .frame import Bos
from .keep import OUTLIERS, beyond
from .models import LoadedModel
from .rows import StoreSource
from .shuffle import Place, PooledStream, generator, select_rows
from .source import Batch, Source, Split, Stream
from .splits import Bools, parts_of
from .store import capture_to_store, cutter_of
from .texts import Document

HELDOUT_ROWS = 500_000
"""Rows of the held-out store, about half of which calibrate and half of which evaluate."""

_CHUNK = 16  # documents tokenised together
_TRAIN = 2


class StreamedSource(Source):
    """Activations of one module over a stream of documents, captured anew in every epoch.

    Documents are read in their order, so many at a time as give ``buffer_rows`` rows; these are shuffled among
    themselves by the seed and handed out, and the next ones read meanwhile. So memory holds two buffers of rows,
    and a resume reads the documents before its place again but runs the model on none of them.

    The held-out documents are those that ``StoreSource`` would hold out. The first of them are captured into a
    store, once, on which SAEs are calibrated and which ``apportion evaluate`` reads like any other.

    Args:
        model: the model that is run.
        module: path of its module.
        documents: called for every walk over the documents, each time from the first one on.
        heldout_store: folder of the held-out rows; a finished one is used as it is.
        context, batch_size, outliers, skip_first, bos: as for ``capture_to_store``.
        heldout, split_seed: as for ``StoreSource``.
        heldout_rows: rows of the held-out store, both parts together.
        buffer_rows: rows that are shuffled among themselves.
        keep_outliers: let tokens of outlying norm take part.
        data_description: JSON that says where the documents come from.
        progress: show how far the capture of the held-out rows is.

    Raises: as ``capture_to_store``; ``InvalidConfig`` for a buffer or a held-out share out of range.

    Attributes:
        heldout: the source of the held-out store.
    """

    def __init__(
        self,
        model: LoadedModel,
        module: str,
        documents: Callable[[], Iterable[Document]],
        heldout_store: str | Path,
        *,
        context: int = 128,
        batch_size: int = 32,
        outliers: float | None = OUTLIERS,
        skip_first: int = 0,
        bos: Bos = "auto",
        heldout: float = 0.2,
        split_seed: int = 0,
        heldout_rows: int = HELDOUT_ROWS,
        buffer_rows: int = 65_536,
        keep_outliers: bool = False,
        data_description: Any = None,
        progress: Shown = False,
    ) -> None:
        if buffer_rows < 1 or not 0 < heldout < 1:
            raise InvalidConfig(
                f"buffer_rows = {buffer_rows} and heldout = {heldout}; expected a buffer of at least 1 row, "
                "such as 65536, and a share between 0 and 1, such as 0.2"
            )
        split = _Split(documents, heldout, split_seed)
        manifest = capture_to_store(
            model,
            module,
            split.heldout(),
            heldout_store,
            context=context,
            batch_size=batch_size,
            max_rows=heldout_rows,
            outliers=outliers,
            skip_first=skip_first,
            bos=bos,
            progress=progress,
            data_description=data_description,
        )
        self.heldout = StoreSource(
            heldout_store, module, heldout=heldout, split_seed=split_seed, keep_outliers=keep_outliers
        )
        self.module = module
        bound = None if keep_outliers else (manifest.bounds or {}).get(module)
        cutter = cutter_of(model, [module], context, tensors=False, skip_first=skip_first, bos=bos)
        self._buffer = buffer_rows
        # Each stream has a walk of its own.
        self._pools = partial(_StreamedPools, model, module, split, cutter, batch_size, buffer_rows, bound)

    @property
    def d_in(self) -> int:
        return self.heldout.d_in

    def describe(self) -> dict[str, Any]:
        return self.heldout.describe() | {"kind": "streamed", "buffer_rows": self._buffer}

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        return PooledStream(self._pools(), batch_size, seed, state)

    def blocks(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return self.heldout.blocks(split, limit)

    def left_out(self, split: Split, limit: int | None = None) -> Iterator[Batch]:
        return self.heldout.left_out(split, limit)

    def remarks(self) -> list[str]:
        return self.heldout.remarks()

    def contexts(self, split: Split, batch_size: int = 32, limit_rows: int | None = None) -> Iterator[Contexts]:
        """As ``StoreSource.contexts``."""
        return self.heldout.contexts(split, batch_size, limit_rows)


class _Split:
    """A walk over the documents, divided by the hash of their ids as ``parts_of`` does it."""

    def __init__(self, documents: Callable[[], Iterable[Document]], heldout: float, seed: int) -> None:
        self._documents, self._heldout, self._seed = documents, heldout, seed

    def heldout(self) -> Iterator[Document]:
        """The held-out documents, in order."""
        return (document for document, trains in self._marked() if not trains)

    def training(self) -> Iterator[Document]:
        """The training documents, in order."""
        return (document for document, trains in self._marked() if trains)

    def _marked(self) -> Iterator[tuple[Document, bool]]:
        documents = iter(self._documents())
        while chunk := list(islice(documents, _CHUNK)):
            parts: Bools = parts_of([document.id for document in chunk], self._heldout, self._seed) == _TRAIN
            yield from zip(chunk, parts.tolist(), strict=True)


class _StreamedPools:
    """Pools of consecutive training documents; a place is how many of them come before, in an epoch.

    One walk over the documents stays open at the place where the last pool ended, which is where the next one
    is asked for; any other place is walked to anew.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        module: str,
        split: _Split,
        cutter: Cutter[Document],
        batch_size: int,
        buffer: int,
        bound: float | None,
    ) -> None:
        self._loaded, self._module, self._split, self._cutter = loaded, module, split, cutter
        self._batch_size, self._bound, self._buffer = batch_size, bound, buffer
        self._walk: Iterator[Document] = iter(())
        self._at = -1

    def fingerprint(self) -> dict[str, Any]:
        return {"streamed": True, "buffer_rows": self._buffer}

    def load(self, seed: int, place: Place) -> tuple[Batch, Place]:
        if self._at != place.at:
            self._walk, self._at = self._split.training(), place.at
            skipped = sum(1 for _ in islice(self._walk, place.at))
            if skipped < place.at:
                raise InvalidInput(
                    f"the data hold {skipped:,} training documents and {place.at:,} were read before; resume "
                    "with the same data"
                )
        windows, rows, ended = self._windows()
        after = Place(place.epoch + 1, 0) if ended else Place(place.epoch, self._at)
        if ended:
            self._at = -1
        if not windows:
            return Batch(torch.empty(0, 0)), after
        captured = self._capture(windows)
        order = generator(seed, place.epoch, place.at).permutation(rows)
        order = order[~beyond(captured.x, self._bound)[order]]
        return select_rows(captured, torch.from_numpy(order)), after

    def _windows(self) -> tuple[list[Window], int, bool]:
        """The contexts of the next documents, until they fill the buffer; their rows; whether that was all."""
        taken: list[Window] = []
        rows = 0
        while rows < self._buffer:
            document = next(self._walk, None)
            if document is None:
                return taken, rows, True
            own = list(self._cutter.windows([document], self._at)[0])
            self._at += 1
            taken += own
            rows += sum(window.rows for window in own)
        return taken, rows, False

    def _capture(self, windows: list[Window]) -> Batch:
        rows = extract_rows(self._loaded, [self._module], windows, self._batch_size, torch.float32)
        columns: list[Tensor] = [torch.from_numpy(column).long() for column in row_columns(windows)]
        return Batch(rows[self._module], *columns)
