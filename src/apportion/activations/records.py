"""``Document``, the records that become one, and those that cannot, which are counted."""

from __future__ import annotations

import math
import warnings
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ApportionWarning, InvalidInput
from ..files import text_digest

_MOST = 3.4028234663852886e38  # the largest float32

LONGEST, PART = 65_536, 8_192
"""Characters: a document of more than ``LONGEST`` is cut into parts of at most one and a half ``PART``.

About 16,000 and 2,000 tokens. The rule looks at the document alone, so a text is the same units, in the same
parts of the split, whatever else is in the data. ``LONGEST`` is above what a collection of articles holds, whose
splits stay as they are; ``PART`` is so small that a text above it gives enough units for a split by hash, and so
large that the shorter context at the end of each costs little.
"""

_ENDS = ("\n\n", "\n", ". ", "。", " ")
"""What a part ends with, the best first."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        id: what splits and figures call it.
        target: a number that a rule may learn from, the same for all its tokens.
    """

    id: str
    text: str
    target: float | None = None

    def digest(self) -> str:
        """What its text is known by, the same as ``Text.digest`` of a scored text."""
        return text_digest(self.text)


class Unusable(InvalidInput):
    """A record that gives no document.

    Attributes:
        reason: what it lacks, in words that other records may share, so that they can be counted.
        where: the record.
    """

    def __init__(self, where: str, sentence: str, reason: str) -> None:
        super().__init__(f"{where} {sentence}")
        self.where, self.reason = where.rstrip(","), reason


class LeftOut:
    """The records that gave no document: how many, why, and where the first of each kind is."""

    def __init__(self) -> None:
        self._before: dict[str, array[int]] = {}
        self.first: dict[str, Unusable] = {}

    def add(self, record: Unusable, documents: int) -> None:
        """Count ``record``, which comes after so many ``documents``."""
        self.first.setdefault(record.reason, record)
        self._before.setdefault(record.reason, array("q")).append(documents)

    def counts(self, documents: int | None = None) -> dict[str, int]:
        """How many by reason: all, or those before the last of the first so many ``documents``."""
        found = {
            reason: len(places) if documents is None else bisect_left(places, documents)
            for reason, places in self._before.items()
        }
        return {reason: n for reason, n in sorted(found.items()) if n}

    def tell(self, counts: Mapping[str, int] | None = None) -> None:
        """Warn in one line of what was left out; of nothing, no word."""
        counts = self.counts() if counts is None else counts
        if not counts:
            return
        named = []
        for reason, n in counts.items():
            first = f", first: {self.first[reason].where}" if reason in self.first else ""
            named.append(f"{reason} ({n:,}{first})")
        rows = sum(counts.values())
        what = "1 record of the data was" if rows == 1 else f"{rows:,} records of the data were"
        warnings.warn(f"{what} left out: {'; '.join(named)}", ApportionWarning, stacklevel=3)


@dataclass(frozen=True)
class Fields:
    """Where a record's text, id and target are.

    Attributes:
        read_target: makes a target of what the field holds (None where it is not there) in place of the check
            that it is a number.
    """

    text: str = "text"
    id: str = "id"
    target: str | None = None
    read_target: Callable[[Any], float | None] | None = None

    def document(self, record: Any, where: str, place: str) -> Document:
        """The document of ``record``, called ``place`` if it has no id; its text is not checked yet.

        Raises ``Unusable``.
        """
        if not isinstance(record, Mapping):
            raise Unusable(
                where,
                f'is a {type(record).__name__}; expected an object such as {{"{self.text}": ...}}: '
                "correct that line",
                "no object",
            )
        text = record.get(self.text)
        if not isinstance(text, str):
            raise Unusable(
                where,
                f"has no text in field {self.text!r} (its fields: {_names(record)}); name the "
                "field that holds the text",
                f"no text in field {self.text!r}",
            )
        name = record.get(self.id)
        target = None if self.target is None else self._target(record, self.target, where)
        own = place if name is None else checked(str(name), f"{where} by its field {self.id!r},")
        return Document(own, text, target)

    def _target(self, record: Mapping[str, Any], field: str, where: str) -> float | None:
        value: Any = record.get(field)
        if self.read_target is not None:
            return self.read_target(value)
        if not usable_target(value):
            raise Unusable(
                where,
                f"has {value!r:.40} as target {field!r} (its fields: {_names(record)}); expected a "
                "finite number within float32: name another field or repair that record",
                f"no finite number in field {field!r}",
            )
        return float(value)


def usable_target(value: Any) -> bool:
    """Whether ``value`` is a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _MOST and not math.isnan(value)  # compared first: a Python int may be beyond float


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record)) or "none"


def checked(text: str, where: str) -> str:
    """``text``, unless it is none. Raises ``Unusable``."""
    _no_nul(text, where)
    if (at := _surrogate(text)) is not None:
        raise Unusable(
            where,
            f"holds half a character (a lone surrogate at place {at}), which no encoding has; "
            "expected Unicode text: repair it",
            "half a character",
        )
    return text


def checked_bytes(text: str, where: str) -> str:
    """``text`` that was decoded with ``surrogateescape``, unless it is none. Raises ``Unusable``."""
    _no_nul(text, where)
    if (at := _surrogate(text)) is not None:
        byte = len(text[:at].encode())
        sentence = f"is binary: byte {byte} is not UTF-8; expected text: convert it to UTF-8"
        raise Unusable(where, sentence, "binary")
    return text


def _no_nul(text: str, where: str) -> None:
    if "\0" in text:
        sentence = "is binary: it holds a NUL character; expected text: give a text file"
        raise Unusable(where, sentence, "binary")


def _surrogate(text: str) -> int | None:
    """Place of the first lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def slices(text: str) -> Iterator[str]:
    """``text`` by and by."""
    return (text[at : at + LONGEST] for at in range(0, len(text), LONGEST))


def units(
    document: Document, text: Iterator[str], where: str, check: Callable[[str, str], str], whole: bool
) -> Iterator[Document | Unusable]:
    """The documents that ``document`` becomes with ``text``, which comes by and by: itself, or its parts.

    Parts are called ``id#1``, ``id#2`` and so on and share its target; their texts together are its text. One
    that is blank is left out without a word, all others as ``check`` says.

    Args:
        check: as ``checked``.
        whole: keep a long document in one piece.
    """
    held = _Held(text)
    held.fill(math.inf if whole else LONGEST + 1)
    if whole or len(held.text) <= LONGEST:
        yield _unit(document, held.text, where, check)
        return
    words = False
    for number, piece in enumerate(held.parts(), 1):
        if piece.strip():
            words = True
            part = replace(document, id=f"{document.id}#{number}")
            yield _unit(part, piece, f"{where.rstrip(',')}, part {number},", check)
    if not words:
        yield _unit(document, "", where, check)


def _unit(document: Document, text: str, where: str, check: Callable[[str, str], str]) -> Document | Unusable:
    if not text.strip():
        return Unusable(where, "is blank; expected words: fill it or leave it out", "blank")
    try:
        return replace(document, text=check(text, where))
    except Unusable as record:
        return record


class _Held:
    """The part of a text that is in memory, and what comes after it."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces, self.text, self._more = pieces, "", True

    def fill(self, size: float) -> None:
        """Hold ``size`` characters, or all that are left."""
        held = [self.text]
        length = len(self.text)
        while self._more and length < size:
            piece = next(self._pieces, None)
            self._more = piece is not None
            held.append(piece or "")
            length += len(held[-1])
        self.text = "".join(held)

    def parts(self) -> Iterator[str]:
        """The text in parts of about ``PART`` characters, which end where a sentence does, if one does."""
        while True:
            self.fill(3 * PART // 2 + 1)
            if len(self.text) <= 3 * PART // 2:
                break
            at = self._end()
            part, self.text = self.text[:at], self.text[at:]
            yield part
        if self.text:
            yield self.text

    def _end(self) -> int:
        """Where the next part ends."""
        for end in _ENDS:
            at = self.text.rfind(end, PART // 2, PART)
            if at >= 0:
                return at + len(end)
        return PART
