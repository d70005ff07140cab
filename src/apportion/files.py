"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InvalidCheckpoint, InvalidInput, StorageFailure

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

TEMPORARY = ".tmp-"
"""Prefix of whatever is still being written; leftovers of a killed process may be deleted."""


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Say in one sentence what went wrong with the file system."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the path and its permissions"
        raise StorageFailure(
            f"cannot write {path}: {error.strerror or error}; {remedy} and run the same command again"
        ) from error


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from ``what`` (such as "training in") ``folder``; the system frees it after a kill.

    Raises:
        StorageFailure: another process is at it.
    """
    if fcntl is None:  # a system without such locks
        yield
        return
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StorageFailure(
            f"another process is {what} {folder}; wait for it or choose another folder"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Replace files of one folder by these bytes, in this order, once all of them are on the disk.

    Raises:
        StorageFailure: the old files then stay.
    """
    temporary = {path: path.with_name(f"{TEMPORARY}{path.name}") for path in files}
    try:
        for path, data in files.items():
            with storage(path), temporary[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            with storage(path):
                temporary[path].replace(path)
    except StorageFailure:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    for folder in {path.parent for path in files}:
        with storage(folder):
            sync(folder)


def to_json(data: Any, where: Path) -> bytes:
    """Readable JSON. Raises ``InvalidInput`` for NaN and infinity, which other readers cannot parse."""
    try:
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"{where} cannot hold a value ({error}); use finite numbers, words and lists"
        ) from None


def write_json(path: Path, data: Any) -> None:
    """``write_atomically`` of ``to_json``."""
    write_atomically({path: to_json(data, path)})


def sha256(data: bytes) -> str:
    """Hex digest, as files name each other by."""
    return hashlib.sha256(data).hexdigest()


def text_digest(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text: what a store, scores and labels know it by."""
    return sha256(text.encode(errors="surrogatepass"))[:16]


def seal(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``data`` with a checksum of its canonical form under ``checksum``, so that no damage goes unnoticed."""
    content: dict[str, Any] = json.loads(
        to_json({key: value for key, value in data.items() if key != "checksum"}, path)
    )
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {"checksum": sha256(canonical.encode())}


def check_seal(data: dict[str, Any], path: Path) -> None:
    """Raises ``InvalidCheckpoint`` unless ``data`` is as ``seal`` made it."""
    if data != seal(data, path):
        raise InvalidCheckpoint(f"{path} does not match its checksum, so it was damaged or edited; copy it again")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ``InvalidCheckpoint`` if it is missing or not one."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path} does not exist; pass the folder of {what}") from None
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read ({error.strerror}); pass the folder of {what}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidCheckpoint(f"{path} is not valid JSON ({error}); {what} is damaged") from None
    if not isinstance(data, dict):
        raise InvalidCheckpoint(f"{path} holds {type(data).__name__}, expected an object; {what} is damaged")
    return data


def check_format(data: dict[str, Any], name: str, version: int, path: Path) -> None:
    """Refuse a file of another kind or of a newer version."""
    if data.get("format") != name:
        raise InvalidCheckpoint(f"{path} has format {data.get('format')!r}, expected {name!r}; pass another path")
    found = data.get("version")
    if not isinstance(found, int) or not 1 <= found <= version:
        raise InvalidCheckpoint(
            f"{path} has version {found!r} of {name}, this release reads up to {version}; upgrade apportion"
        )
