"""Documents for a model, from strings, text files, JSON Lines, Hugging Face datasets."""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, StorageFailure
from ..files import from_json
from .files import check_file, resolve_url
from .records import (
    Document,
    Fields,
    LeftOut,
    Unusable,
    checked,
    checked_bytes,
    slices,
    units,
    usable_target,
)
from .tables import table_records, there

__all__ = ["Document", "Documents", "Paths", "iter_documents", "load_documents", "usable_target"]

_HOPELESS = 1000
"""Records in a row from the first on, none of which can be used, after which nobody waits for the others."""
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Paths:
    """Several files, folders or data sets, read one after the other in this order; patterns stand for the files
    that they match, sorted.

    Documents without an id are called ``file:place``, and one whose id an earlier file has ``file:id``, so that
    no two files share one.
    """

    names: tuple[str, ...]


Data = str | Path | Paths | Sequence[str] | Sequence[Path]


def load_documents(
    data: Data,
    *,
    text_field: str = "text",
    id_field: str = "id",
    target_field: str | None = None,
    limit: int | None = None,
    strict: bool = False,
    whole: bool = False,
    streaming: bool = False,
) -> list[Document]:
    """Documents in the order of their source. Warns in one line if records are left out.

    Args:
        data: a list of texts; a .txt file (one document) or a folder of them (one each, by name); a .jsonl or
            .jsonl.gz file with an object per line; a .parquet, .json or .csv file with a record per row; or a
            Hugging Face dataset ``name[:config][@split]`` (a local dataset folder too). Text and JSON Lines
            may lie on any fsspec file system. A pattern such as ``"data/*.jsonl"``, a list of ``Path`` and
            ``Paths`` stand for several of these.
        text_field, id_field, target_field: fields of an object. Without the id field, a document is called
            after its place in the source.
        limit: read that many documents.
        strict: refuse a record that cannot be used (without text or target, blank, binary, broken), which is
            otherwise left out and counted.
        whole: keep documents of more than 65,536 characters in one piece. Otherwise they are cut into parts of
            about 8,192, called ``id#1`` and so on, each of which is a unit of the split.
        streaming: read a dataset of the hub as it is needed, without a copy on this machine.

    Raises: ``InvalidInput`` for data without a usable text, ``UnknownName`` for a data set that cannot be
    found; ``StorageFailure``; ``MissingExtra`` without `datasets`.
    """
    found = iter_documents(
        data,
        text_field=text_field,
        id_field=id_field,
        target_field=target_field,
        strict=strict,
        whole=whole,
        streaming=streaming,
    )
    documents = list(islice(found, limit))
    found.left_out.tell()
    return documents


def iter_documents(
    data: Data,
    *,
    text_field: str = "text",
    id_field: str = "id",
    target_field: str | None = None,
    read_target: Callable[[Any], float | None] | None = None,
    strict: bool = False,
    whole: bool = False,
    streaming: bool = False,
) -> Documents:
    """The documents of ``load_documents``, each read when it is asked for; what is left out is counted.

    Args:
        read_target: makes a target of what the field holds (None where it is not there) in place of the check
            that it is a number; a document may then be without.
    """
    fields = Fields(text_field, id_field, target_field, read_target)
    if isinstance(data, (str, Path)):
        names = _matching(str(data))
        found = _several(names, fields, whole, streaming) if names else _read(str(data), fields, whole, streaming)
        return Documents(found, str(data), strict)
    if isinstance(data, Paths) or (data and all(isinstance(one, Path) for one in data)):
        given = data.names if isinstance(data, Paths) else [str(path) for path in data]
        names = [name for one in given for name in (_matching(one) or [one])]
        one_only = len(given) == 1 and names == list(given)
        found = (
            _read(names[0], fields, whole, streaming) if one_only else _several(names, fields, whole, streaming)
        )
        return Documents(found, ", ".join(given), strict)
    return Documents(_from_list(data, whole), "the list of texts", strict)


class Documents(Iterator[Document]):
    """Documents as they are read.

    Attributes:
        left_out: the records so far that gave none.
    """

    def __init__(self, found: Iterator[Document | Unusable], source: str, strict: bool) -> None:
        self._found, self._source, self._strict = found, source, strict
        self._given = 0
        self.left_out = LeftOut()

    def __next__(self) -> Document:
        for one in self._found:
            if isinstance(one, Document):
                self._given += 1
                return one
            if self._strict:
                raise one
            self.left_out.add(one, self._given)
            if not self._given and sum(self.left_out.counts().values()) == _HOPELESS:
                raise self._nothing()
        if not self._given:
            raise self._nothing()
        raise StopIteration

    def _nothing(self) -> InvalidInput:
        rows = sum(self.left_out.counts().values())
        faults = [one for one in self.left_out.first.values() if one.reason != "blank"]
        if not faults:
            return InvalidInput(
                f"{self._source} holds no text (every document is blank); give data with words in it"
            )
        if rows == 1:
            return faults[0]
        return InvalidInput(f"none of the first {rows:,} records of {self._source} can be used: {faults[0]}")


def _from_list(texts: Sequence[Any], whole: bool) -> Iterator[Document | Unusable]:
    for place, text in enumerate(texts):
        where = f"text {place}"
        if isinstance(text, str):
            yield from units(Document(str(place), ""), slices(text), where, checked, whole)
        else:
            sentence = f"is a {type(text).__name__}; expected str: pass a list of strings"
            yield Unusable(where, sentence, "no string")


def _several(names: Sequence[str], fields: Fields, whole: bool, streaming: bool) -> Iterator[Document | Unusable]:
    """The documents of all of these, no two files sharing an id."""
    names = list(dict.fromkeys(names))  # a file that is given twice is read once
    labels = _labels(names)
    before: set[bytes] = set()
    for name, label in zip(names, labels, strict=True):
        own: set[bytes] = set()
        for one in _read(name, fields, whole, streaming, f"{label}:"):
            if isinstance(one, Document):
                key = hashlib.blake2b(one.id.encode(errors="surrogatepass"), digest_size=8).digest()
                own.add(key)
                yield replace(one, id=f"{label}:{one.id}") if key in before else one
            else:
                yield one
        before |= own


def _labels(names: Sequence[str]) -> list[str]:
    """What tells these files apart, in a few letters if they do."""
    short = [Path(name).name.partition(".")[0] or name for name in names]
    if len(set(short)) == len(short):
        return short
    parts, shared = [name.split("/") for name in names], 0
    while all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return ["/".join(own[shared:]) for own in parts]


def _matching(data: str) -> list[str]:
    """The files that the pattern ``data``, with ``@split`` or without, stands for, sorted; none for no pattern.

    Raises ``StorageFailure`` for a pattern that matches nothing.
    """
    remote = "://" in data
    if not ("*" in data if remote else glob.has_magic(data)):
        return []
    base, _, split = data.rpartition("@")
    for pattern, suffix in ((data, ""), *([(base, f"@{split}")] if base else [])):
        if not remote and there(pattern) is not None:
            return []
        with _reading(data):
            fs, root = resolve_url(pattern)
            found = [fs.unstrip_protocol(path) if remote else str(path) for path in fs.glob(root)]
        if found:
            return sorted(f"{path}{suffix}" for path in found)
    raise StorageFailure(f"no file matches {data}; correct the pattern")


def _read(
    data: str, fields: Fields, whole: bool, streaming: bool, prefix: str = ""
) -> Iterator[Document | Unusable]:
    """The documents of one file, folder or data set; those without an id are called ``prefix`` and place."""
    if data.endswith(".txt"):
        yield from _text_file(data, whole)
    elif names := _text_folder(data):
        for path in names:
            yield from _text_file(path, whole)
    elif data.endswith((".jsonl", ".jsonl.gz")):
        for place, line in enumerate(_lines(data)):
            where = f"{data}, line {place + 1},"
            if line.strip():
                yield from _of_record(_object(line, where), fields, where, f"{prefix}{place}", whole)
    else:
        for place, record in enumerate(table_records(data, streaming)):
            yield from _of_record(record, fields, f"{data}, record {place},", f"{prefix}{place}", whole)


def _of_record(record: Any, fields: Fields, where: str, name: str, whole: bool) -> Iterator[Document | Unusable]:
    if isinstance(record, Unusable):
        yield record
        return
    try:
        document = fields.document(record, where, name)
    except Unusable as unusable:
        yield unusable
        return
    yield from units(document, slices(document.text), where, checked, whole)


def _text_folder(data: str) -> list[str]:
    """The .txt files of a folder, sorted; none if it is no folder."""
    if "://" not in data:
        folder = there(data)
        with _reading(data):
            return sorted(map(str, folder.glob("*.txt"))) if folder is not None and folder.is_dir() else []
    fs, root = resolve_url(data)
    with _reading(data):
        return sorted(fs.unstrip_protocol(path) for path in fs.glob(f"{root}/*.txt"))


def _text_file(path: str, whole: bool) -> Iterator[Document | Unusable]:
    return units(Document(Path(path).stem, ""), _decoded(path), path, checked_bytes, whole)


def _decoded(path: str) -> Iterator[str]:
    """The text of a file by and by; bytes that are no UTF-8 become lone surrogates."""
    fs, root = resolve_url(path)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with _reading(path):
        check_file(fs, root)
        with fs.open(root, "rb") as file:
            while raw := file.read(_CHUNK_BYTES):
                yield decoder.decode(raw)
    yield decoder.decode(b"", final=True)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageFailure(f"cannot read {path}: {reason}; give the path of a readable file") from None


def _lines(path: str) -> Iterator[bytes]:
    fs, root = resolve_url(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_reading(path))
        check_file(fs, root)
        file: Any = stack.enter_context(fs.open(root, "rb"))
        if not path.endswith(".gz"):
            yield from file
            return
        try:
            yield from stack.enter_context(gzip.open(file))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InvalidInput(f"{path} is no whole gzip file ({error}); compress it again") from None


def _object(line: bytes, where: str) -> Any:
    """What a line of JSON says, or why it says nothing."""
    try:
        return from_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        sentence = f"is binary: byte {error.start} is not UTF-8; expected text: convert it to UTF-8"
        return Unusable(where, sentence, "binary")
    except ValueError as error:
        return Unusable(where, f"is not JSON ({error}); write one object per line", "not JSON")
