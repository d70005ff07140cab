"""Every way in which a command can end, and what is said then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from ..errors import ApportionError, InvalidConfig, is_out_of_memory
from .main import INTERRUPTED
from .output import EscapedStderr, flush, say, warnings_said


def status_of(argv: Sequence[str] | None) -> int:
    """Run one command and say in a sentence what ended it, if it was not that all is done."""
    try:
        try:
            return _run(argv)
        finally:
            flush()
    except ApportionError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        say(INTERRUPTED)
        return 130
    except BrokenPipeError:  # as `| head` leaves it; the reader has what it wanted
        return 141
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _refused(f"{where}{error.strerror or error}; correct the path, its permissions or the space there")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["no more of it could be had"])[0]
        return _refused(f"memory ran out ({reason}); use a smaller batch, fewer rows or fewer features")


def _run(argv: Sequence[str] | None) -> int:
    from .commands import parse

    # The parser repeats what it was given.
    with contextlib.redirect_stderr(EscapedStderr(sys.stderr)):
        command = parse(argv)
    try:
        with warnings_said():
            return int(command.run())
    except SystemExit as leaving:
        raise InvalidConfig(
            f"code from outside this package ended the command (SystemExit: {leaving.code}) before it was done; "
            "correct that plug-in or model"
        ) from None


def _refused(message: str) -> int:
    say("apportion: " + " ".join(line.strip() for line in message.splitlines()))
    return 2
