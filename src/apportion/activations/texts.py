"""Documents for a model, from strings, text files, JSON Lines, Hugging Face datasets."""

from __future__ import annotations

import contextlib
import glob
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, MissingExtra, StorageFailure, UnknownName
from ..files import from_json, what_is
from .files import check_file, resolve_url
from .models import ask_hub

_MOST = 3.4028234663852886e38  # the largest float32


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
            .jsonl.gz file with an object per line; a .parquet, .json or .csv file with a record per row; or a
            Hugging Face dataset ``name[:config][@split]`` (a local dataset folder too). Text and JSON Lines
            may lie on any fsspec file system.
        text_field, id_field, target_field: fields of an object. Without the id field, a document is called
            after its place in the source.
        limit: read that many documents.

    Raises: ``InvalidInput`` for text that is empty or binary, an unusable line or target; ``UnknownName``
    for a data set that cannot be found; ``StorageFailure``; ``MissingExtra`` without `datasets`.
    """
    found = iter_documents(data, text_field=text_field, id_field=id_field, target_field=target_field)
    return list(islice(found, limit))


def iter_documents(
    data: str | Path | Sequence[str],
    *,
    text_field: str = "text",
    id_field: str = "id",
    target_field: str | None = None,
    read_target: Callable[[Any], float | None] | None = None,
) -> Iterator[Document]:
    """The documents of ``load_documents``, each read when it is asked for.

    Args:
        read_target: makes a target of what the field holds (None where it is not there) in place of the check
            that it is a number; a document may then be without.
    """
    fields = _Fields(text_field, id_field, target_field, read_target)
    if isinstance(data, (str, Path)):
        source, documents = str(data), _from_path(str(data), fields)
    else:
        source, documents = "the list of texts", _from_list(data)
    found = False
    for document in documents:
        if document.text.strip():
            found = True
            yield document
    if not found:
        raise InvalidInput(f"{source} holds no text (every document is blank); give data with words in it")


@dataclass(frozen=True)
class _Fields:
    text: str
    id: str
    target: str | None
    read_target: Callable[[Any], float | None] | None

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
        target = None if self.target is None else self._target(record, self.target, where)
        own = str(place) if name is None else _checked(str(name), f"{where} by its field {self.id!r},")
        return Document(own, _checked(text, where), target)

    def _target(self, record: Mapping[str, Any], field: str, where: str) -> float | None:
        value: Any = record.get(field)
        if self.read_target is not None:
            return self.read_target(value)
        if not usable_target(value):
            raise InvalidInput(
                f"{where} has {value!r:.40} as target {field!r} (its fields: {_names(record)}); expected a "
                "finite number within float32: name another field or repair that record"
            )
        return float(value)


def usable_target(value: Any) -> bool:
    """Whether ``value`` is a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _MOST and not math.isnan(value)  # compared first: a Python int may be beyond float


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record)) or "none"


def _checked(text: str, where: str) -> str:
    if "\0" in text:
        raise InvalidInput(f"{where} is binary: it holds a NUL character; expected text: give a text file")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where} holds half a character (a lone surrogate at place {error.start}), which no encoding has; "
            "expected Unicode text: repair it"
        ) from None
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
    if "://" not in data:
        folder = _there(data)
        with _reading(data):
            return sorted(map(str, folder.glob("*.txt"))) if folder is not None and folder.is_dir() else []
    fs, root = resolve_url(data)
    with _reading(data):
        return sorted(fs.unstrip_protocol(path) for path in fs.glob(f"{root}/*.txt"))


def _text_file(path: str, name: str) -> Document:
    fs, root = resolve_url(path)
    with _reading(path):
        check_file(fs, root)
        raw = bytes(fs.cat_file(root))
    return Document(name, _checked(_decode(raw, path), path))


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
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


def _json_lines(path: str, fields: _Fields) -> Iterator[Document]:
    for place, line in enumerate(_lines(path)):
        where = f"{path}, line {place + 1},"
        text = _decode(line, where)
        if not text.strip():
            continue
        try:
            record = from_json(text)
        except ValueError as error:
            raise InvalidInput(f"{where} is not JSON ({error}); write one object per line") from None
        yield fields.document(record, where, place)


_TABLES = {".parquet": "parquet", ".json": "json", ".csv": "csv"}
_DATA = (*_TABLES, ".txt", ".jsonl", ".gz")


def _dataset(data: str, fields: _Fields) -> Iterator[Document]:
    name, config, split = _parse_name(data)
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"loading {data!r} needs datasets; install apportion[capture]") from None
    with _quiet(datasets):
        table = _table(datasets, data, name, config, split)
        for place, record in enumerate(table):
            yield fields.document(record, f"{data}, record {place},", place)


def _parse_name(data: str) -> tuple[str, str, str]:
    """Name, config and split of ``name[:config][@split]``; a path that is there is only a name.

    Raises ``StorageFailure`` for what can only be meant as a path and is not there.
    """
    whole, _, split = data.rpartition("@") if "@" in data else (data, "", "")
    name, _, config = whole.partition(":")
    for read in ((data, "", ""), (whole, "", split), (name, config, split)):
        if (found := _there(read[0])) is not None:
            return str(found), *read[1:]
    # An id of the hub has one slash at most; its first part is rarely a folder here.
    below = "/" in name and _there(name.rpartition("/")[0]) is not None
    if "://" in data or name.startswith(("/", ".", "~")) or name.endswith(_DATA) or below:
        raise StorageFailure(f"cannot read {data}: there is no such file or folder; correct the path")
    return name, config, split


def _there(name: str) -> Path | None:
    """The file or folder ``name``, if there is one."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have
        return None


def _table(datasets: Any, data: str, name: str, config: str, split: str) -> Any:
    """The records of a data set. Raises ``UnknownName`` if it cannot be loaded or lacks the split,
    ``InvalidInput`` for a file of no known kind."""
    path = Path(name)
    if what_is(path) == "other":
        raise StorageFailure(f"cannot read {data}: it is no file but a pipe or a device; give a file or a folder")
    if not path.exists() and not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).exists():
        ask_hub(name, "dataset")
    kind = _TABLES.get(path.suffix) if path.is_file() else None
    if path.is_file() and kind is None:  # the hub has nothing under the name of a local file
        raise InvalidInput(
            f"{data} is a file whose kind its name does not tell; rename it to end in .txt, .jsonl, .jsonl.gz, "
            ".parquet, .json or .csv"
        )
    try:
        if kind is not None:
            found = datasets.load_dataset(kind, data_files=glob.escape(name))
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config or None)
    except Exception as error:  # datasets, the hub and pyarrow raise their own families
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if kind is not None:
            raise InvalidInput(f"{data} is no {kind} file with a record per row ({reason}); repair it") from None
        raise UnknownName(
            f"cannot load the data {data!r} ({reason}); give a .txt, .jsonl, .parquet, .json or .csv file, a "
            "folder of .txt files, or a dataset name[:config][@split]"
        ) from None
    splits = dict(found) if isinstance(found, dict) else {}
    if not splits and not split:
        return found
    if split and split not in splits:
        raise UnknownName(
            f"the data {data!r} has no split {split!r}; choose one of: {', '.join(map(repr, splits)) or 'none'}"
        )
    return splits[split or next(iter(splits))]


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library's own progress bars off, and leave its setting as it was."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
