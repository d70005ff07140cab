"""Entry point of ``apportion``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from ..errors import ApportionError
from .analyse import Analyse
from .bench import Bench
from .capture import Capture
from .compare import Compare
from .demo import Demo
from .evaluate import Evaluate
from .output import warnings_said
from .report import Report
from .score import Score
from .train import Train

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "capture": Capture,
    "score": Score,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "analyse": Analyse,
    "report": Report,
    "bench": Bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 done in part, 2 bad input, 130 interrupted)."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="apportion",
        description="Sparse autoencoders that give each input the features it needs.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        with warnings_said():
            return int(command.run())
    except ApportionError as error:
        sentence = " ".join(line.strip() for line in str(error).splitlines())
        sys.stderr.write(f"apportion: {sentence}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("apportion: interrupted; run the same command again to go on\n")
        return 130
