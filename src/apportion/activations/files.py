"""``Folder``: one directory on disk or on any fsspec file system, written atomically and read by ranges."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import InvalidInput, MissingExtra, StorageFailure
from ..files import check_regular, open_file, replaceable

_T = TypeVar("_T")


def resolve_url(path: str | Path) -> tuple[Any, str]:
    """The file system and the path in it that a local path or an fsspec URL names.

    Raises ``InvalidInput`` for an unknown protocol, ``MissingExtra`` if its library is not installed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(str(Path(path).expanduser()) if "://" not in str(path) else str(path))
    except (ValueError, RuntimeError) as error:  # the second for the home of someone who has none
        raise InvalidInput(f"cannot open {str(path)!r}: {error}; use a local path or an fsspec URL") from None
    except ImportError as error:
        raise MissingExtra(f"cannot open {str(path)!r}: {error}") from None
    return fs, str(root).rstrip("/") or "/"


def check_file(fs: Any, path: str) -> None:
    """Raises ``OSError`` for a pipe, a device or a folder on this machine: reading one may never end."""
    if isinstance(fs, LocalFileSystem):
        check_regular(path)


class Folder:
    """One directory. Every failure of the file system is a ``StorageFailure`` that names the path."""

    def __init__(self, path: str | Path) -> None:
        self.url = str(path)
        self._fs, self._root = resolve_url(path)
        self.local = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """The full path of the entry ``name``."""
        return f"{self._root}/{name}"

    def create(self) -> None:
        """Make the directory and its parents; nothing happens if it is there."""
        try:
            self._fs.makedirs(self._root, exist_ok=True)
        except OSError as error:
            raise _failure("create the folder", self._root, error) from None

    def exists(self, name: str) -> bool:
        """Whether ``name`` is there."""
        return self._guarded(name, lambda path: bool(self._fs.exists(path)))

    def size(self, name: str) -> int:
        """Bytes of ``name``, or -1 if it is not there."""

        def measure(path: str) -> int:
            try:
                return int(self._fs.size(path))
            except FileNotFoundError:
                return -1

        return self._guarded(name, measure)

    def read(self, name: str) -> bytes:
        """All of ``name``."""
        return self._reading(name, lambda path: bytes(self._fs.cat_file(path)))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of ``name``."""
        return self._reading(name, lambda path: bytes(self._fs.cat_file(path, start=start, end=stop)))

    def read_ranges(self, name: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """Several byte ranges of ``name``, fetched together where the file system can."""

        def fetch(path: str) -> list[bytes]:
            return list(self._fs.cat_ranges([path] * len(starts), list(starts), list(stops), on_error="raise"))

        return self._reading(name, fetch)

    def read_runs(self, name: str, starts: Sequence[int], stops: Sequence[int]) -> bytearray:
        """Several byte ranges of ``name``, one after the other; short if the file ends before they do.

        Not by a memory map: a file that is cut off while it is mapped ends the process without a word.
        """
        if self.local is None:
            return bytearray().join(self.read_ranges(name, starts, stops))

        def fetch(path: str) -> bytearray:
            filled = 0
            lengths = [stop - start for start, stop in zip(starts, stops, strict=True)]
            with open_file(path) as file, memoryview(found := bytearray(sum(lengths))) as view:
                for start, length in zip(starts, lengths, strict=True):
                    while length and (got := os.preadv(file.fileno(), [view[filled : filled + length]], start)):
                        filled, start, length = filled + got, start + got, length - got
                    if length:
                        break
            del found[filled:]
            return found

        return self._guarded(name, fetch)

    def stamp(self, name: str) -> tuple[int, int] | None:
        """What changes when ``name`` is written to, as far as a local file system tells."""
        if self.local is None:
            return None
        found = self._guarded(name, os.stat)
        return found.st_size, found.st_mtime_ns

    def stream(self, name: str, consume: Callable[[BinaryIO], _T]) -> _T:
        """What ``consume`` makes of the open file ``name``."""

        def run(path: str) -> _T:
            with self._fs.open(path, "rb") as file:
                return consume(file)

        return self._reading(name, run)

    def remove(self, name: str) -> None:
        """Delete ``name``; nothing happens if it is not there."""
        path = self.path(name)
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failure("remove", path, error) from None

    def clear_temporaries(self, pattern: str) -> None:
        """Delete what interrupted calls of ``write`` left of files whose whole name matches ``pattern``."""
        for path in self._guarded("", lambda _: list(self._fs.ls(self._root, detail=False))):
            name = str(path).rsplit("/", 1)[-1]
            if re.fullmatch(rf"\.(?:{pattern})\.tmp", name):
                self.remove(name)

    def write(self, name: str, fill: Callable[[BinaryIO], _T]) -> _T:
        """Let ``fill`` write the file ``name``, which appears whole or not at all, and return its result.

        A link stays, and the file that it points to is replaced; a device or a pipe of that name is refused.
        """
        final = temporary = ""
        try:
            final = self.path(name) if self.local is None else str(replaceable(self.local / name))
            folder, _, last = final.rpartition("/")
            temporary = f"{folder}/.{last}.tmp"
            if self.local is not None:
                Path(temporary).unlink(missing_ok=True)  # it may be a link, which opening would follow
            with self._fs.open(temporary, "wb") as file:
                result = fill(file)
                file.flush()
                if self.local is not None:
                    os.fsync(file.fileno())
            self._publish(temporary, final)
        except BaseException as error:
            if temporary:
                with contextlib.suppress(OSError):
                    self._fs.rm_file(temporary)
            if isinstance(error, OSError) and not isinstance(error, StorageFailure):
                raise _failure("write", self.path(name), error) from None
            raise
        return result

    def _publish(self, temporary: str, final: str) -> None:
        if self.local is None:
            self._fs.mv(temporary, final)
            return
        Path(temporary).replace(final)
        descriptor = os.open(Path(final).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the rename itself survives a power cut only once the folder is flushed
        finally:
            os.close(descriptor)

    def _reading(self, name: str, action: Callable[[str], _T]) -> _T:
        """``action`` on the file ``name``; what is no file is refused, for reading it may never end."""

        def guarded(path: str) -> _T:
            check_file(self._fs, path)
            return action(path)

        return self._guarded(name, guarded)

    def _guarded(self, name: str, action: Callable[[str], _T]) -> _T:
        path = self.path(name)
        try:
            return action(path)
        except OSError as error:
            raise _failure("read", path, error) from None


def _failure(action: str, path: str, error: OSError) -> StorageFailure:
    reason = error.strerror or str(error) or type(error).__name__
    return StorageFailure(
        f"cannot {action} {path}: {reason}; free space or correct the path and its permissions, then run the "
        "same command again"
    )
