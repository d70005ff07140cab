"""Records of Hugging Face data sets and of tables in files, read as they are asked for."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, MissingExtra, StorageFailure, UnknownName
from ..files import what_is
from .places import ask_hub

_TABLES = {".parquet": "parquet", ".json": "json", ".csv": "csv"}
_DATA = (*_TABLES, ".txt", ".jsonl", ".gz")


def table_records(data: str, streaming: bool) -> Iterator[Any]:
    """The records of ``data``, a file or ``name[:config][@split]``, in order.

    What lies on this machine is read where it is; a data set of the hub is copied whole unless ``streaming``.

    Raises ``UnknownName`` if it cannot be loaded or lacks the split, ``InvalidInput`` for a file of no known
    kind or a damaged one, ``StorageFailure`` for a path that is not there, ``MissingExtra`` without `datasets`.
    """
    name, config, split = _parse_name(data)
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"loading {data!r} needs datasets; install apportion[capture]") from None
    path = Path(name)
    if what_is(path) == "other":
        raise StorageFailure(f"cannot read {data}: it is no file but a pipe or a device; give a file or a folder")
    kind = _TABLES.get(path.suffix) if path.is_file() else None
    if path.is_file() and kind is None:  # the hub has nothing under the name of a local file
        raise InvalidInput(
            f"{data} is a file whose kind its name does not tell; rename it to end in .txt, .jsonl, .jsonl.gz, "
            ".parquet, .json or .csv"
        )
    if not path.exists() and not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).exists():
        ask_hub(name, "dataset")
    with _quiet(datasets), _foreign(data, kind):
        if kind is not None:
            found = datasets.load_dataset(kind, data_files=glob.escape(name), streaming=True)
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config or None, streaming=streaming or path.exists())
    records = iter(_of_split(found, data, split))
    while True:
        with _quiet(datasets), _foreign(data, kind):  # a stream meets most faults only here
            record = next(records, None)
        if record is None:
            return
        yield record


def _of_split(found: Any, data: str, split: str) -> Any:
    splits = dict(found) if isinstance(found, dict) else {}
    if not splits and not split:
        return found
    if split and split not in splits:
        raise UnknownName(
            f"the data {data!r} has no split {split!r}; choose one of: {', '.join(map(repr, splits)) or 'none'}"
        )
    return splits[split or next(iter(splits))]


@contextlib.contextmanager
def _foreign(data: str, kind: str | None) -> Iterator[None]:
    """Say in one sentence what `datasets` could not do with ``data``."""
    try:
        yield
    except Exception as error:  # datasets, the hub and pyarrow raise their own families
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if kind is not None:
            raise InvalidInput(f"{data} is no {kind} file with a record per row ({reason}); repair it") from None
        raise UnknownName(
            f"cannot load the data {data!r} ({reason}); give a .txt, .jsonl, .parquet, .json or .csv file, a "
            "folder of .txt files, or a dataset name[:config][@split]"
        ) from None


def _parse_name(data: str) -> tuple[str, str, str]:
    """Name, config and split of ``name[:config][@split]``; a path that is there is only a name.

    Raises ``StorageFailure`` for what can only be meant as a path and is not there.
    """
    whole, _, split = data.rpartition("@") if "@" in data else (data, "", "")
    name, _, config = whole.partition(":")
    for read in ((data, "", ""), (whole, "", split), (name, config, split)):
        if (found := there(read[0])) is not None:
            return str(found), *read[1:]
    # An id of the hub has one slash at most; its first part is rarely a folder here.
    below = "/" in name and there(name.rpartition("/")[0]) is not None
    if "://" in data or name.startswith(("/", ".", "~")) or name.endswith(_DATA) or below:
        raise StorageFailure(f"cannot read {data}: there is no such file or folder; correct the path")
    return name, config, split


def there(name: str) -> Path | None:
    """The file or folder ``name``, if there is one."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have
        return None


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
