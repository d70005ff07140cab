"""Entry point of ``apportion``, with next to no imports: it is there before anyone can interrupt it."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

INTERRUPTED = "apportion: interrupted; run the same command again to go on"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments; None for those of this process, which then is the command's own.

    Returns: the exit status (0 done, 1 done in part, 2 bad input, 130 interrupted, 141 nobody read the output to
        its end).
    """
    if argv is not None:
        from .ending import status_of

        return status_of(argv)
    # Libraries that are being imported do not all pass an interrupt on, so that it ends the process right here.
    waiting = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so in the background
    if waiting:
        signal.signal(signal.SIGINT, _leave)
    _open_streams()
    from . import commands  # noqa: F401  (seconds)
    from .ending import status_of

    if waiting:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return status_of(None)
    finally:
        if waiting:  # what is left is the interpreter's own end, about which it would print tracebacks
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _let_go()


def _leave(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"{INTERRUPTED}\n".encode())
    finally:
        os._exit(130)


def _open_streams() -> None:
    """Fill the places of closed standard streams, so that no other file gets into them."""
    for place, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(place)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free place, which is this one
    # Results cannot be written to the second: the command ends with a sentence about it.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _let_go() -> None:
    """Leave nothing in the standard streams that cannot be written; it was said by now, if it could be said."""
    for place, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), place)
