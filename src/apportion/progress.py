"""How far a long job is: a bar at a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from tqdm import tqdm

Shown: TypeAlias = bool | Literal["lines"]
"""What of a job's progress is written to standard error: nothing, a bar, or a line every ``LINE_SECONDS``."""

LINE_SECONDS = 30.0
"""Often enough to see that a job in a log file is alive, and seldom enough to read the file."""


def bar(iterable: Iterable[Any] | None = None, *, shown: Shown, **options: Any) -> tqdm[Any]:
    """A ``tqdm`` over ``iterable``, or one to be updated, whose progress is ``shown``.

    Args:
        options: of tqdm, such as ``total``, ``desc``, ``unit``, ``initial``.
    """
    if shown != "lines":
        return tqdm(iterable, disable=not shown, **options)
    return tqdm(
        iterable,
        file=_Lines(),
        mininterval=LINE_SECONDS,
        maxinterval=LINE_SECONDS,
        delay=LINE_SECONDS,  # a short job says nothing
        ascii=True,
        ncols=0,  # the numbers without a bar
        **options,
    )


class _Lines:
    """Standard error, for which every state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            with contextlib.suppress(OSError, ValueError):  # nobody hears it where that is closed or full
                sys.stderr.write(line + "\n")

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
