"""The commands by name, and the parser that reads their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from .analyse import Analyse
from .bench import Bench
from .capture import Capture
from .compare import Compare
from .demo import Demo
from .evaluate import Evaluate
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


def parse(argv: Sequence[str] | None) -> Any:
    """The command that the arguments describe; ends the process where they describe none, as argparse does."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="apportion",
        description="Sparse autoencoders that give each input the features it needs.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
