"""A store that is read: its documents, and any rows of one module in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CorruptStore, NonFiniteActivations, UnknownName, nearest
from ..files import from_json
from .checks import CONTEXTS, columns_fault, header_fault, order_fault, rows_fault
from .contexts import Window
from .files import Folder
from .manifest import ShardEntry, read_manifest
from .shards import CARRIERS, Entry, Header, as_tensor, damaged, read_header
from .source import Batch
from .splits import Ints

_CHUNK_BYTES = 1 << 20
_GAP_BYTES = 4096


class ShardReader:
    """One shard: rows of its tensors, by reads of byte ranges."""

    def __init__(self, folder: Folder, entry: ShardEntry) -> None:
        self.entry = entry
        self._folder = folder
        self._header: Header | None = None
        self._stamp: tuple[int, int] | None = None

    def verify(self, hashed: bool) -> None:
        """Compare size, and if ``hashed`` the SHA-256, with the manifest. Raises ``CorruptStore``."""
        size, entry = self._folder.size(self.entry.file), self.entry
        if size < 0:
            raise self.damaged("it is missing")
        if size != entry.bytes:
            raise self.damaged(f"it has {size} bytes and should have {entry.bytes}")
        if not hashed:
            self._stamp = self._folder.stamp(entry.file)
        elif self._folder.stream(entry.file, _sha256) != entry.sha256:
            raise self.damaged("its SHA-256 is not the one in the manifest")

    def damaged(self, fault: str) -> CorruptStore:
        """The error for this shard."""
        return damaged(self._folder, self.entry.file, fault)

    def refuse(self, fault: str | None) -> None:
        """Raises ``CorruptStore`` if there is a fault."""
        if fault is not None:
            raise self.damaged(fault)

    def header(self) -> Header:
        """Its tensors and metadata."""
        if self._header is None:
            self._header = read_header(self._folder, self.entry.file, self.entry.bytes)
        return self._header

    def documents(self) -> list[str]:
        """The ids of the documents that it covers."""
        return self._of_documents("documents")

    def digests(self) -> list[str]:
        """The digests of their texts, "" in a shard of before there were any."""
        known = "digests" in self.header().metadata
        return self._of_documents("digests") if known else [""] * self.entry.documents

    def _of_documents(self, name: str) -> list[str]:
        """What the metadata say of each document under ``name``. Raises ``CorruptStore`` for no texts."""
        try:
            found = from_json(self.header().metadata.get(name, "[]"))
        except ValueError as error:
            raise self.damaged(f"its {name} are not JSON ({error})") from None
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.damaged(f"its {name} are no list of texts")
        if len(found) != self.entry.documents:
            raise self.damaged(f"it names {len(found)} {name} and should name {self.entry.documents}")
        return found

    def whole(self, name: str) -> NDArray[Any]:
        """All of the tensor ``name``, in its carrier type."""
        entry = self._tensor(name)
        return self._read(entry, [entry.begin], [entry.begin + entry.nbytes]).reshape(entry.shape)

    def copy(self, name: str, rows: Ints, column: Tensor, places: Tensor) -> None:
        """Put ``rows``, which ascend, of the tensor ``name`` at ``places`` of ``column``, each [len(rows)]."""
        # Small pieces stay in the processor's cache from the read to the place that they go to.
        size = max(1, _CHUNK_BYTES // max(1, self._tensor(name).row_bytes))
        for begin in range(0, len(rows), size):
            own = slice(begin, begin + size)
            column[places[own]] = self.rows(name, rows[own]).to(column.dtype)

    def rows(self, name: str, rows: Ints) -> Tensor:
        """[len(rows), ...] of the tensor ``name``, in its own dtype; ``rows`` ascend."""
        entry = self._tensor(name)
        # What lies in a small gap is read too: that takes less time than to begin another read.
        cuts = np.flatnonzero((np.diff(rows) - 1) * entry.row_bytes > _GAP_BYTES) + 1
        heads, lasts = rows[np.append(0, cuts)], rows[np.append(cuts - 1, len(rows) - 1)]
        starts = (entry.begin + heads * entry.row_bytes).tolist()
        stops = (entry.begin + (lasts + 1) * entry.row_bytes).tolist()
        found = self._read(entry, starts, stops).reshape(-1, *entry.shape[1:])
        if len(found) != len(rows):
            lengths = lasts + 1 - heads
            before = np.repeat(heads - (lengths.cumsum() - lengths), np.diff([0, *cuts, len(rows)]))
            found = np.take(found, rows - before, axis=0)
        return as_tensor(found, entry.dtype)

    def _tensor(self, name: str) -> Entry:
        entries = self.header().entries
        if name not in entries:
            raise self.damaged(f"it lacks the tensor {name!r}")
        return entries[name]

    def _read(self, entry: Entry, starts: list[int], stops: list[int]) -> NDArray[Any]:
        """Bytes of one tensor as numbers. Raises ``CorruptStore`` if the file is no longer what was opened."""
        if self._stamp != self._folder.stamp(self.entry.file):
            raise self.damaged("it was changed while it was being read")
        raw = self._folder.read_runs(self.entry.file, starts, stops)
        if len(raw) != sum(stops) - sum(starts):
            raise self.damaged("it was cut off while it was being read")
        return np.frombuffer(raw, CARRIERS[entry.dtype])


class StoreReader:
    """The rows of one module of a complete store.

    Attributes:
        manifest: what the store says of itself.
        module: the module read.
        documents, digests: the id of every document, by its index, and the digest of its text ("" if unknown).
        begins, counts: [documents] first row and number of rows of each.
    """

    def __init__(self, folder: Folder, module: str | None, verify: bool) -> None:
        self._folder = folder
        self.manifest = read_manifest(folder)
        self.module = self._choose(module)
        self._shards = [ShardReader(folder, entry) for entry in self.manifest.shards]
        for hashed in (False, True) if verify else (False,):
            for shard in self._shards:
                shard.verify(hashed)
        for shard in self._shards:
            shard.refuse(header_fault(self.manifest, shard.entry, shard.header()))
        if fault := order_fault(self.manifest):
            raise damaged(folder, fault[0].file, fault[1])
        self._offsets = np.cumsum([0, *(shard.entry.rows for shard in self._shards)])
        self.documents, self.digests, self.begins, self.counts = self._read_documents()
        if verify:
            self._check_columns()

    @property
    def d_in(self) -> int:
        """Width of the module's activations."""
        return self.manifest.modules[self.module]

    def gather(self, rows: Ints) -> Batch:
        """The rows with these numbers, in this order, as float32.

        Raises: ``NonFiniteActivations`` naming the shard and the row in it.
        """
        order = np.argsort(rows)
        ascending, x = rows[order], torch.empty(len(rows), self.d_in)
        document, position = (torch.empty(len(rows), dtype=torch.int64) for _ in range(2))
        target = torch.empty(len(rows)) if self.manifest.targets else None
        columns = {f"activations/{self.module}": x, "document": document, "position": position}
        if target is not None:
            columns["target"] = target
        cuts = np.searchsorted(ascending, self._offsets)
        for shard, first, start, stop in zip(self._shards, self._offsets, cuts, cuts[1:], strict=False):
            if start < stop:
                places = torch.from_numpy(order[start:stop])
                for name, column in columns.items():
                    shard.copy(name, ascending[start:stop] - first, column, places)
        self._check_finite(x, rows)
        return Batch(x, document, position, target)

    def context_starts(self) -> tuple[Ints, Ints]:
        """Document and place of the first row in it, each [contexts], of every context in order.

        The rows of a document that was fed as tensors are one context.
        """
        if self.manifest.settings.inputs == "tensors":
            documents = np.flatnonzero(self.counts)
            return documents, np.zeros_like(documents)
        found = [[shard.whole(name) for name in ("context_document", "context_start")] for shard in self._shards]
        documents, starts = (np.concatenate(column).astype(np.int64) for column in zip(*found, strict=True))
        return documents, starts

    def outliers(self) -> Ints:
        """The rows that the capture marked as outliers in norm, ascending."""
        name = f"outlier/{self.module}"
        marked = [
            np.flatnonzero(shard.whole(name)) + first
            for shard, first in zip(self._shards, self._offsets, strict=False)
            if name in shard.header().entries
        ]
        return np.concatenate([np.zeros(0, np.int64), *marked]).astype(np.int64)

    def windows(self, chosen: NDArray[np.bool_], end: int, left_out: Ints) -> Iterator[Window]:
        """The contexts of the ``chosen`` documents, in order, their kept tokens being rows before ``end``.

        Args:
            chosen: [documents].
            left_out: rows whose tokens are not kept, ascending.
        """
        for shard, first in zip(self._shards, self._offsets, strict=False):
            if first >= end:
                return
            ids, keep, offsets, documents, starts = (shard.whole(name) for name in CONTEXTS)
            for at in np.flatnonzero(chosen[documents]):
                own, document, start = slice(offsets[at], offsets[at + 1]), documents[at], starts[at]
                row = int(self.begins[document] + start)
                if row >= end:
                    return
                window = Window(ids[own], keep[own], int(document), int(start)).clip(end - row)
                first_out, last_out = np.searchsorted(left_out, [row, row + window.rows])
                window = window.without(left_out[first_out:last_out] - row)
                if window.rows:
                    yield window

    def _choose(self, module: str | None) -> str:
        modules = self.manifest.modules
        if module is None and len(modules) == 1:
            return next(iter(modules))
        if module not in modules:
            asked = "several modules and none was named" if module is None else f"no module {module!r}"
            known = nearest(module or "", modules)
            raise UnknownName(f"the store {self._folder.url} has {asked}; choose one of: {known}")
        return module

    def _read_documents(self) -> tuple[list[str], list[str], Ints, Ints]:
        ids: list[str] = [""] * self.manifest.documents
        digests = list(ids)
        counts = np.zeros(self.manifest.documents, np.int64)
        for shard in self._shards:
            first, own = shard.entry.first_document, shard.documents()
            rows = shard.whole("document_rows")
            shard.refuse(rows_fault(shard.entry, rows))
            ids[first : first + len(own)] = own
            digests[first : first + len(own)] = shard.digests()
            counts[first : first + len(own)] += rows
        return ids, digests, np.concatenate([[0], counts.cumsum()[:-1]]).astype(np.int64), counts

    def _check_columns(self) -> None:
        """Raises ``CorruptStore`` for a shard whose rows, documents and contexts do not belong together."""
        names = ["document", "position", "document_rows", *(["target"] if self.manifest.targets else [])]
        names += CONTEXTS if self.manifest.settings.inputs == "text" else ()
        for shard, first in zip(self._shards, self._offsets.tolist(), strict=False):
            columns = {name: shard.whole(name) for name in names}
            shard.refuse(columns_fault(shard.entry, first, self.begins, columns))

    def _check_finite(self, x: Tensor, rows: Ints) -> None:
        # A sum is finite only if every term is; the exact search is left for when it is not.
        if bool(torch.isfinite(x.sum())):
            return
        bad = (~torch.isfinite(x).all(1)).nonzero()
        if len(bad):
            row = int(rows[int(bad[0])])
            at = int(np.searchsorted(self._offsets, row, side="right")) - 1
            raise NonFiniteActivations(
                f"row {row - int(self._offsets[at])} of shard "
                f"{self._folder.path(self._shards[at].entry.file)} holds a NaN or infinite activation; "
                "capture the store again from a model that gives none"
            )


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
