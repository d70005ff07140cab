"""The command line: parse, build, call, exit code. One file per command, a flat dataclass each.

A command is a dataclass with ``run() -> int``, listed in ``commands.COMMANDS``. Results go to standard output, by
``output.show`` or ``put``, bars and messages to standard error; bad input is one sentence and status 2.
"""

from .main import main

__all__ = ["main"]
