"""Answers that were paid for, on disk as soon as they come: a stopped run pays for none of them again."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..files import append_file, from_json, locked, sha256, storage

FILE = "answers.jsonl"


class Answers:
    """What was answered, by a key of all that the answer depends on.

    Args:
        known: answers there are.
        file: where new ones are appended; None keeps them in memory only.
    """

    def __init__(self, known: dict[str, Any], file: BinaryIO | None = None) -> None:
        self._known, self._file, self._lock = known, file, threading.Lock()

    def get(self, key: str) -> Any:
        """The answer, or None."""
        return self._known.get(key)

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer; once this returns, no kill loses it. Raises ``StorageFailure``."""
        line = json.dumps({"key": key, "answer": answer, "check": _check(key, answer)}) + "\n"
        with self._lock:
            self._known[key] = answer
            if self._file is not None:
                with storage(Path(self._file.name)):
                    self._file.write(line.encode())
                    self._file.flush()
                    os.fsync(self._file.fileno())


@contextlib.contextmanager
def kept_answers(folder: Path | None) -> Iterator[Answers]:
    """The answers kept in ``folder``, which no other process may use meanwhile.

    Raises ``StorageFailure``. A damaged line, as the last one of a killed run may be, counts as no answer.
    """
    if folder is None:
        yield Answers({})
        return
    path = folder / FILE
    with locked(folder, "judging with the answers in"), contextlib.ExitStack() as stack:
        with storage(path):
            file = stack.enter_context(append_file(path))
            file.seek(0)
            lines = file.read().split(b"\n")
            if lines[-1]:  # cut off by a kill: the next answer begins a line of its own
                file.write(b"\n")
        yield Answers(dict(filter(None, map(_entry, lines))), file)


def _entry(line: bytes) -> tuple[str, Any] | None:
    try:
        data = from_json(line)
        key, answer = str(data["key"]), data["answer"]
    except (ValueError, KeyError, TypeError):
        return None
    # Lines of older versions have no checksum.
    return None if data.get("check", _check(key, answer)) != _check(key, answer) else (key, answer)


def _check(key: str, answer: Any) -> str:
    """What tells whether a line is as it was written."""
    return sha256(json.dumps([key, answer], sort_keys=True).encode())[:8]
