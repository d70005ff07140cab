"""Documents for a model, from strings, text files, JSON Lines, Hugging Face datasets."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, MissingExtra, StorageFailure, UnknownName
from .files import resolve_url


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


def load_documents(
    data: str | Path | Sequence[str],
    *,
    text_field: str = "text",
    id_field: str = "id",
    target_field: str | None = None,
    limit: int | None = None,
) -> list[Document]:
    """Documents in the order of their source; those that are blank are left out.

    Args:
        data: a list of texts; a .txt file (one document) or a folder of them (one each, by name); a .jsonl or
            .jsonl.gz file with an object per line; or a Hugging Face dataset ``name[:config][@split]`` (a
            local dataset folder too). Files may lie on any fsspec file system.
        text_field, id_field, target_field: fields of an object. Without the id field, a document is called
            after its place in the source.
        limit: read that many documents.

    Raises: ``InvalidInput`` for text that is empty or binary, an unusable line or target; ``UnknownName``
    for a data set that cannot be found; ``StorageFailure``; ``MissingExtra`` without `datasets`.
    """
    fields = _Fields(text_field, id_field, target_field)
    if isinstance(data, (str, Path)):
        source, documents = str(data), _from_path(str(data), fields)
    else:
        source, documents = "the list of texts", _from_list(data)
    found = list(islice((document for document in documents if document.text.strip()), limit))
    if not found:
        raise InvalidInput(f"{source} holds no text (every document is blank); give data with words in it")
    return found


@dataclass(frozen=True)
class _Fields:
    text: str
    id: str
    target: str | None

    def document(self, record: Any, where: str, place: int) -> Document:
        if not isinstance(record, Mapping):
            raise InvalidInput(
                f'{where} is a {type(record).__name__}; expected an object such as {{"{self.text}": ...}}: '
                "correct that line"
            )
        text = record.get(self.text)
        if not isinstance(text, str):
            raise InvalidInput(
                f"{where} has no text in field {self.text!r} (its fields: {_names(record)}); name the "
                "field that holds the text"
            )
        name = record.get(self.id)
        target = None if self.target is None else _target(record.get(self.target), self.target, where, record)
        return Document(str(place) if name is None else str(name), _checked(text, where), target)


def _target(value: Any, field: str, where: str, record: Mapping[str, Any]) -> float:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable:
        raise InvalidInput(
            f"{where} has {value!r} as target {field!r} (its fields: {_names(record)}); expected a "
            "finite number: name another field or repair that record"
        )
    return float(value)


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record)) or "none"


def _checked(text: str, where: str) -> str:
    if "\0" in text:
        raise InvalidInput(f"{where} is binary: it holds a NUL character; expected text: give a text file")
    return text


def _from_list(texts: Sequence[Any]) -> Iterator[Document]:
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"text {place} is a {type(text).__name__}; expected str: pass a list of strings")
        yield Document(str(place), _checked(text, f"text {place}"))


def _from_path(data: str, fields: _Fields) -> Iterator[Document]:
    if data.endswith(".txt"):
        yield _text_file(data, Path(data).stem)
    elif data.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(data, fields)
    elif names := _text_folder(data):
        for path in names:
            yield _text_file(path, Path(path).stem)
    else:
        yield from _dataset(data, fields)


def _text_folder(data: str) -> list[str]:
    """The .txt files of a folder, sorted; none if it is no folder."""
    if "://" not in data and not Path(data).expanduser().is_dir():
        return []
    fs, root = resolve_url(data)
    return sorted(fs.unstrip_protocol(path) for path in fs.glob(f"{root}/*.txt"))


def _text_file(path: str, name: str) -> Document:
    return Document(name, _checked(_decode(_open(path), path), path))


def _open(path: str) -> bytes:
    fs, root = resolve_url(path)
    try:
        return bytes(fs.cat_file(root))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageFailure(f"cannot read {path}: {reason}; give the path of a readable file") from None


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{where} is binary: byte {error.start} is not UTF-8; expected text: convert it to UTF-8"
        ) from None


def _json_lines(path: str, fields: _Fields) -> Iterator[Document]:
    raw = _open(path)
    if path.endswith(".gz"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise InvalidInput(f"{path} is no whole gzip file ({error}); compress it again") from None
    for place, line in enumerate(raw.splitlines()):
        where = f"{path}, line {place + 1},"
        text = _decode(line, where)
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"{where} is not JSON ({error}); write one object per line") from None
        yield fields.document(record, where, place)


def _dataset(name: str, fields: _Fields) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"loading {name!r} needs datasets; install apportion[capture]") from None
    path, _, split = name.partition("@")
    path, _, config = path.partition(":")
    try:
        if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(path)
        else:
            table = datasets.load_dataset(path, config or None)
        if isinstance(table, dict):
            table = table[split or next(iter(table))]
    except Exception as error:  # datasets, the hub and pyarrow raise their own families
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UnknownName(
            f"cannot load the data {name!r} ({reason}); give a .txt or .jsonl file, a folder of .txt "
            "files, or a dataset name[:config][@split]"
        ) from None
    for place, record in enumerate(table):
        yield fields.document(record, f"{name}, record {place},", place)
