"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

from .errors import InvalidCheckpoint, InvalidInput, StorageFailure

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

TEMPORARY = ".tmp-"
"""Prefix of whatever is still being written; leftovers of a killed process may be deleted."""

DEEPEST = 100
"""Levels of lists and objects that JSON may have; ours has ten."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_NO_SUCH_NAME = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


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


def what_is(path: str | Path) -> Literal["file", "folder", "other"] | None:
    """What lies at ``path``, links followed; None if nothing does, or the name is one that no file can have.

    Raises:
        StorageFailure: it may not be looked at.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  (a Path of its own raises for some names and not for others)
    except ValueError:  # a NUL in the name
        return None
    except OSError as error:
        if error.errno in _NO_SUCH_NAME:
            return None
        raise StorageFailure(
            f"cannot look at {path}: {error.strerror or error}; correct the path and its permissions"
        ) from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def names_in_folder(folder: str | Path) -> list[str]:
    """The names of what lies in ``folder``, sorted; none if it is no folder.

    Raises:
        StorageFailure: it may not be read.
    """
    if what_is(folder) != "folder":
        return []
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  (names are all that is asked for)
    except OSError as error:
        raise StorageFailure(
            f"cannot read the folder {folder}: {error.strerror or error}; correct its permissions"
        ) from None


def check_regular(path: str | Path, mode: int | None = None) -> None:
    """Raises ``OSError`` if something other than a file is there: reading a pipe or a device may never end.

    Args:
        mode: of the open file, where it is open already.
    """
    if mode is None:
        mode = os.stat(path).st_mode  # noqa: PTH116
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a file", str(path))


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. Raises ``OSError`` for anything else, at once."""
    return _opened(path, "rb")


def append_file(path: Path) -> BinaryIO:
    """A regular file, made if need be, to read anywhere and write at its end. Raises as ``open_file``."""
    return _opened(path, "ab+")


def _opened(path: str | Path, mode: Literal["rb", "ab+"]) -> BinaryIO:
    def at_once(name: str, flags: int) -> int:
        handle = os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)  # a pipe would wait for its other end
        try:
            check_regular(path, os.fstat(handle).st_mode)
        except OSError:
            os.close(handle)
            raise
        return handle

    try:
        return open(path, mode, opener=at_once)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None


def read_bytes(path: str | Path) -> bytes:
    """All of a regular file. Raises ``OSError`` for anything else, at once."""
    with open_file(path) as file:
        return file.read()


def replaceable(path: Path) -> Path:
    """The file that a write to ``path`` replaces: a link stays, and the file that it points to is replaced.

    Raises:
        OSError: something is there that is no file, such as a device, which a rename would destroy.
    """
    try:
        check_regular(path)
    except FileNotFoundError:
        pass  # a new file, or the target of a link that is not there yet
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from ``what`` (such as "training in") ``folder``; the system frees it after a kill.

    Where this process may not write, there is nothing to keep others from: what is finished can be read there.

    Raises:
        StorageFailure: another process is at it.
    """
    if fcntl is None:  # a system without such locks
        yield
        return
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(folder / ".lock")
    if handle is None:
        yield
        return
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


def _open_lock(path: Path) -> int | None:
    """The lock file, made if need be; None if it is not there and cannot be."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    try:
        return os.open(path, os.O_RDONLY)  # enough to hold a lock
    except FileNotFoundError:
        return None


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
        StorageFailure: the old files then stay; also where a device, a pipe or a folder has the name.
    """
    finals: dict[Path, Path] = {}
    for path in files:
        with storage(path):
            finals[path] = replaceable(path)
    temporary = {path: final.with_name(f"{TEMPORARY}{final.name}") for path, final in finals.items()}
    try:
        for path, data in files.items():
            with storage(path):
                temporary[path].unlink(missing_ok=True)
                with temporary[path].open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        for path, final in finals.items():
            with storage(path):
                temporary[path].replace(final)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    for folder in {final.parent for final in finals.values()}:
        with storage(folder):
            sync(folder)


def to_json(data: Any, where: Path) -> bytes:
    """Readable JSON. Raises ``InvalidInput`` for NaN and infinity, which other readers cannot parse."""
    try:
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(
            f"{where} cannot hold a value ({error}); use finite numbers, words and lists"
        ) from None


def from_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ``ValueError``, also for one nested deeper than ``DEEPEST``."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    level = [data]
    for _ in range(DEEPEST):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return data
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _parts(data: Any) -> list[Any]:
    """The lists and objects right inside of one."""
    inside = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [part for part in inside if isinstance(part, (dict, list))]


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
    try:
        sealed = data == seal(data, path)
    except InvalidInput:  # NaN, which was never written
        sealed = False
    if not sealed:
        raise InvalidCheckpoint(f"{path} does not match its checksum, so it was damaged or edited; copy it again")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ``InvalidCheckpoint`` if it is missing or not one."""
    try:
        data = from_json(read_bytes(path))
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path} does not exist; pass the folder of {what}") from None
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read ({error.strerror}); pass the folder of {what}") from None
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} is not valid JSON ({error}); {what} is damaged") from None
    if not isinstance(data, dict):
        raise InvalidCheckpoint(f"{path} holds {type(data).__name__}, expected an object; {what} is damaged")
    return data


def check_format(data: dict[str, Any], name: str, version: int, path: Path) -> None:
    """Refuse a file of another kind or of a newer version."""
    if data.get("format") != name:
        raise InvalidCheckpoint(f"{path} has format {data.get('format')!r}, expected {name!r}; pass another path")
    found = data.get("version")
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= version:
        raise InvalidCheckpoint(
            f"{path} has version {found!r} of {name}, this release reads up to {version}; upgrade apportion"
        )
