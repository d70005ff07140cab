"""How documents become shards: a deterministic function of the documents and the capture settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import InvalidConfig, InvalidInput
from .contexts import Cutter, TextCutter, Window
from .items import Item
from .manifest import CaptureSettings, Cursor
from .texts import Document, usable_target

_CHUNK = 16  # documents tokenised together: enough for the tokenizer's threads, little to hold


def fingerprint(previous: str, document: Document | Item) -> str:
    """The fingerprint of all documents up to this one, from that of the documents before it."""
    content = document.digest() if isinstance(document, Item) else document.text
    text = json.dumps([previous, document.id, content, document.target])
    return hashlib.sha256(text.encode()).hexdigest()


def digests_of(documents: Iterable[Document | Item]) -> list[str]:
    """What scores and labels know each document's text by; "" for items, which have none."""
    return [document.digest() if isinstance(document, Document) else "" for document in documents]


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """What goes into one shard.

    Attributes:
        windows: its contexts, in document order.
        first: index of the first of its documents.
        documents: those it covers, the ones without a window included.
        end: where the next shard begins.
        fingerprint: of all documents that this shard and those before it touch.
    """

    windows: list[Window]
    first: int
    documents: Sequence[Document | Item]
    end: Cursor
    fingerprint: str

    @property
    def key(self) -> str:
        """The same for shards of the same contexts."""
        rows = sum(window.rows for window in self.windows)
        return f"{self.fingerprint} {self.end.document} {self.end.window} {rows}"


class Plan:
    """One walk over the documents, which yields shards.

    Args:
        tokenizer: cuts documents into windows, unless there is a ``cutter`` for that.

    Attributes:
        documents: how many documents were read so far.
        fingerprint: of these.
        exhausted: whether there are no more.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        tokenizer: Any,
        documents: Iterable[Document | Item],
        cutter: Cutter[Any] | None = None,
    ) -> None:
        self._settings = settings
        self._cutter: Cutter[Any] = cutter or TextCutter(tokenizer, settings.context)
        self._kind: type[Document] | type[Item] = Item if settings.inputs == "tensors" else Document
        self._stream: Iterator[Document | Item] = iter(documents)
        self._covered: list[Document | Item] = []
        self._before = ""
        self._targets: bool | None = None
        self.documents = 0
        self.fingerprint = ""
        self.exhausted = False

    def shards(self, start: Cursor, rows: int, expected: str) -> Iterator[ShardPlan]:
        """The shards from ``start`` on; call it once.

        Args:
            rows: rows in the shards before.
            expected: fingerprint of the documents that those shards touch.

        Raises: ``InvalidConfig`` if the documents before ``start`` are not those of the shards on disk,
        ``InvalidInput`` if only some documents have a target.
        """
        room, budget = self._settings.shard_rows, self._settings.max_rows
        if rows == budget:  # only the manifest is missing, which counts the documents touched
            self.verify(start.document + (start.window > 0), expected, whole=False)
            return
        shard: list[Window] = []
        filled = 0
        for number, window in self._windows(start, expected):
            clipped = window if budget is None else window.clip(budget - rows)
            if clipped.rows > room:
                raise InvalidConfig(
                    f"shard_rows = {room} is below the {clipped.rows} rows of document {self.documents - 1}; "
                    "raise it to that at least"
                )
            if filled + clipped.rows > room:
                yield self._cut(shard, number)
                shard, filled = [], 0
            shard.append(clipped)
            filled, rows = filled + clipped.rows, rows + clipped.rows
            if rows == budget:
                yield self._cut(shard, number + 1)
                return
        if shard:
            end = Cursor(document=self.documents)
            yield ShardPlan(shard, end.document - len(self._covered), self._covered, end, self.fingerprint)

    def verify(self, documents: int, expected: str, whole: bool) -> None:
        """Refuse documents that a finished store was not made from (from all of them if ``whole``)."""
        for document in islice(self._stream, documents + whole):
            self._read(document)
            self._covered.clear()
        self._check(Cursor(document=documents), expected)

    def _cut(self, shard: list[Window], number: int) -> ShardPlan:
        """A shard that ends before window ``number`` of the document read last."""
        end = Cursor(document=self.documents - 1, window=number)
        covered, self._covered = self._covered, self._covered[-1:]
        first = self.documents - len(covered)
        if number == 0:  # it ends with the document before
            return ShardPlan(shard, first, covered[:-1], end, self._before)
        return ShardPlan(shard, first, covered, end, self.fingerprint)

    def _windows(self, start: Cursor, expected: str) -> Iterator[tuple[int, Window]]:
        """Every window from ``start`` on with its number in its document."""
        for document in islice(self._stream, start.document):
            self._read(document)
        self._covered = []
        if start.window == 0 or self.documents < start.document:
            self._check(start, expected)
        while chunk := list(islice(self._stream, _CHUNK)):
            for document in chunk:
                self._check_kind(document)
            windows = self._cutter.windows(chunk, self.documents)
            for document, own in zip(chunk, windows, strict=True):
                begun = start.window if self.documents == start.document else 0
                self._read(document)
                if begun:
                    self._check(start, expected)
                yield from islice(enumerate(own), begun, None)
        self.exhausted = True
        if self.documents <= start.document and start.window:
            self._check(start, expected)

    def _read(self, document: Document | Item) -> None:
        self._check_kind(document)
        self._targets = check_target(document, self._targets)
        self._before, self.fingerprint = self.fingerprint, fingerprint(self.fingerprint, document)
        self._covered.append(document)
        self.documents += 1

    def _check(self, start: Cursor, expected: str) -> None:
        if self.fingerprint != expected:
            raise InvalidConfig(
                f"the documents are not the {start.document + (start.window > 0)} that the capture on disk was "
                "made from; repeat it with the same data, or delete the folder and capture again"
            )

    def _check_kind(self, document: Document | Item) -> None:
        if not isinstance(document, self._kind):
            remedy = "pass what `load_documents` returns" if self._kind is Document else "do not mix the two"
            raise InvalidInput(f"{document!r:.60} is no {self._kind.__name__}; {remedy}")


def check_target(document: Document | Item, before: bool | None) -> bool:
    """Whether the document has a target. Raises ``InvalidInput`` if that differs from those ``before`` it."""
    has_target = document.target is not None
    if before not in (None, has_target) or (has_target and not usable_target(document.target)):
        raise InvalidInput(
            f"document {document.id!r} has the target {document.target!r:.40}; give every document a finite "
            "target within float32, or none"
        )
    return has_target
