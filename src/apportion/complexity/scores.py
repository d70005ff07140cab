"""Scores on disk, and the way back from them to texts.

A file of scores is JSON Lines: a header, then a row per text. A row names its text as a capture does, by the id
of the document and, for a context, the place ``start`` of its first token; ``text`` is a digest that tells
whether the text has changed since, and ``document``, of a context, one of the whole document. A row without
``score`` says under ``failed`` why there is none.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from ..config import Config
from ..errors import InvalidInput, StorageFailure
from ..files import check_format, from_json, read_bytes, sha256, write_atomically
from .base import Scored, number_in

FORMAT: Literal["apportion-scores"] = "apportion-scores"
VERSION = 1

Floats = NDArray[np.float64]


class Header(Config):
    """Where scores come from.

    Attributes:
        scorer: its kind.
        direction: +1 if larger scores mean more complex texts, −1 if simpler ones.
        settings: all that decides the scores.
        data: where the texts come from, in the words of whoever scored.
        fingerprint: of the texts scored and their ids, in order.
        checksum: of this header and all rows, as ``save_scores`` writes them; a file of one's own may be without.
    """

    format: Literal["apportion-scores"] = FORMAT
    version: int = VERSION
    scorer: str
    direction: Literal[1, -1]
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    data: JsonValue = None
    fingerprint: str = ""
    checksum: str | None = None

    def sealed(self, rows: Iterable[str]) -> Header:
        """This header with the checksum of itself and of ``rows``, the lines that follow it."""
        own = json.dumps(self.model_dump(mode="json", exclude={"checksum"}), sort_keys=True)
        return self.model_copy(update={"checksum": sha256("\n".join([own, *rows]).encode())})


@dataclass(frozen=True)
class Scores:
    """The scores of texts, of documents or of contexts."""

    header: Header
    rows: tuple[Scored, ...]

    @property
    def values(self) -> Floats:
        """[scored] the scores there are."""
        return np.array([row.value for row in self.rows if row.value is not None], np.float64)

    @property
    def failures(self) -> Counter[str]:
        """How many texts were left out, by the reason."""
        return Counter(row.failure for row in self.rows if row.failure is not None)

    def align(
        self,
        ids: Sequence[str],
        starts: Sequence[int] | None = None,
        digests: Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
    ) -> Floats:
        """The score of each of these texts, NaN where scoring failed.

        Args:
            ids: of the documents, as ``StoreSource.documents`` or ``load_documents`` has them.
            starts: of contexts, as ``Contexts.start`` has them; scores of documents then hold for each of
                their contexts.
            digests: ``Text.digest`` of what was scored, document or context, to notice what has changed.
            documents: digests of the documents, as ``StoreSource.digests`` has them, for the same; "" and rows
                without a digest are not compared.

        Raises:
            InvalidInput: texts have no row, occur twice or have changed; the message counts each.
        """
        by_context = any(row.start is not None for row in self.rows)
        if by_context and starts is None:
            raise InvalidInput("the scores belong to contexts, not to documents; score whole documents")
        places: Sequence[int | None] = [None] * len(ids) if starts is None else starts
        wanted: list[_Key] = list(zip(ids, places, strict=True))
        keys = wanted if by_context else [(name, None) for name in ids]
        known = {(row.id, row.start): row for row in self.rows}
        found = [known.get(key) for key in keys]
        faults = [
            _fault("have no score", [key for key, row in zip(keys, found, strict=True) if row is None]),
            _fault("occur more than once", _repeated(wanted)),
            _fault("have changed since they were scored", _changed(found, digests, documents)),
        ]
        if any(faults):
            raise InvalidInput(
                f"of {len(ids):,} texts, {', '.join(filter(None, faults))}; score the same data with the same ids"
            )
        return np.array([math.nan if row is None or row.value is None else row.value for row in found])


_Key = tuple[str, int | None]


def repeated_ids(ids: Iterable[str]) -> list[str]:
    """Each id that occurs more than once."""
    return [name for name, _ in _repeated((name, None) for name in ids)]


def _repeated(keys: Iterable[_Key]) -> list[_Key]:
    return [key for key, n in Counter(keys).items() if n > 1]


def _changed(
    found: Sequence[Scored | None], digests: Sequence[str] | None, documents: Sequence[str] | None
) -> list[_Key]:
    """The rows that know another text, or another document, than is there now."""
    nothing = [""] * len(found)
    changed = []
    for row, text, document in zip(found, digests or nothing, documents or nothing, strict=True):
        if row is not None:
            whole = row.digest if row.start is None else row.document
            if ("" not in (row.digest, text) and row.digest != text) or (
                "" not in (whole, document) and whole != document
            ):
                changed.append((row.id, row.start))
    return changed


def _fault(what: str, keys: Sequence[_Key]) -> str:
    if not keys:
        return ""
    name, start = keys[0]
    place = "" if start is None else f" at token {start}"
    return f"{len(keys):,} {what} (first: {name!r}{place})"


def save_scores(path: Path, header: Header, rows: Sequence[Scored]) -> Scores:
    """Write the file whole or not at all; ``header`` gets the fingerprint of these rows."""
    keys = json.dumps([(row.id, row.start, row.digest) for row in rows])
    lines = [json.dumps(_record(row), allow_nan=False) for row in rows]
    header = header.model_copy(update={"fingerprint": sha256(keys.encode())}).sealed(lines)
    first = json.dumps(header.model_dump(mode="json"), allow_nan=False)
    write_atomically({path: "".join(f"{line}\n" for line in (first, *lines)).encode()})
    return Scores(header, tuple(rows))


def _record(row: Scored) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id}
    if row.start is not None:
        record["start"] = row.start
    record["text"] = row.digest
    if row.document:
        record["document"] = row.document
    if row.value is None:
        return record | {"failed": row.failure}
    return record | {"score": row.value} | ({"parts": dict(row.parts)} if row.parts else {})


def load_scores(path: str | Path) -> Scores:
    """Read a file of scores, one of your own making included (``id`` and ``score`` in each row are enough).

    Raises:
        InvalidInput: it is no such file, or rows have no id, an id of another row, or no finite number; the
            message counts each.
    """
    path = Path(path)
    try:
        lines = read_bytes(path).decode("utf-8").strip().split("\n")
    except OSError as error:
        raise StorageFailure(f"cannot read {path}: {error.strerror}; give what `apportion score` wrote") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is binary; give what `apportion score` wrote") from None
    records = [_object(line) for line in lines]
    if not records or not isinstance(records[0], dict) or records[0].get("format") != FORMAT:
        raise InvalidInput(f"{path} does not begin with the header of a file of scores; give what `score` wrote")
    check_format({"version": VERSION} | records[0], FORMAT, VERSION, path)
    header = Header.parse(records[0], f"{path}, line 1")
    if header.checksum is not None and header.sealed(lines[1:]) != header:
        raise InvalidInput(
            f"{path} does not match its checksum, so it was damaged or edited; score the texts again or, if you "
            "edited it, take 'checksum' out of its first line"
        )
    rows = [_row(record) for record in records[1:]]
    whole = [row for row in rows if isinstance(row, Scored)]
    twice = [n for n in Counter((row.id, row.start) for row in whole).values() if n > 1]
    kinds = {row.start is None for row in whole}
    faults = Counter(row for row in rows if isinstance(row, str))
    faults += Counter({"with the id of another row": sum(twice) - len(twice)})
    faults += Counter({"of contexts among those of documents": len(whole) if len(kinds) > 1 else 0})
    if faults or not whole:
        named = ", ".join(f"{n:,} {fault}" for fault, n in faults.items()) or "none at all"
        raise InvalidInput(f"{path} has unusable rows: {named}; repair it or score the texts again")
    return Scores(header, tuple(whole))


def _object(line: str) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


def _row(record: Any) -> Scored | str:
    """The row, or in words what is wrong with it."""
    if not isinstance(record, dict):
        return "that are no JSON objects"
    name, start, value = record.get("id"), record.get("start"), record.get("score")
    if type(name) not in (int, str) or not (start is None or type(start) is int):
        return "without an id"
    digest, failure = str(record.get("text", "")), record.get("failed")
    document = str(record.get("document", ""))
    if failure is not None:
        return Scored(str(name), start, digest, None, str(failure), document=document)
    number = None if isinstance(value, str) else number_in(value)
    if number is None:
        return "without a finite number as score"
    parts = record.get("parts")
    return Scored(str(name), start, digest, number, None, parts if isinstance(parts, dict) else {}, document)


@dataclass(frozen=True)
class ScoreScale:
    """Scores to a common scale: complexity upwards, mean 0 and deviation 1 on the texts that it was fitted to."""

    mean: float
    std: float
    direction: int

    def __call__(self, values: Floats) -> Floats:
        """The same scores, standardised; NaN stays."""
        return self.direction * (values - self.mean) / self.std


def fit_scale(values: Floats, direction: int) -> ScoreScale:
    """The scale of the scores of *training* texts [n]; those of others are then put on it.

    Raises:
        InvalidInput: fewer than two scores, scores that are not finite, or all equal: no probe can be fitted.
    """
    bad = int((~np.isfinite(values)).sum())
    if bad or len(values) < 2:
        raise InvalidInput(
            f"{len(values):,} training texts have {bad:,} scores that are no finite numbers; leave those texts "
            "out and give two at least"
        )
    mean, std = float(values.mean()), float(values.std())
    if std <= 1e-12 * abs(mean) or std == 0:
        raise InvalidInput(
            f"all {len(values):,} training texts have the score {mean:g}, so no probe can be fitted; choose "
            "another scorer or column"
        )
    return ScoreScale(mean, std, direction)
