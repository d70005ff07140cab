"""What a training's log says about how an SAE got there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import from_json, read_bytes
from ..training.log import check_log

MEASURES = ("fvu", "l0", "dead")
"""What a record of every rule holds."""


def read_curve(folder: Path, most: int = 200) -> dict[str, list[float | None]] | None:
    """``tokens`` and each of ``MEASURES`` over a run, at most ``most`` records of it, evenly spaced.

    None where there is no log, or none that can be read: an SAE may have been moved without it.

    Raises:
        InvalidCheckpoint: it was damaged since it was written.
    """
    try:
        data = read_bytes(folder / "log.jsonl")
        if b'"check"' in data:  # older versions wrote none
            check_log(folder / "log.jsonl", data)
        lines = data.decode().splitlines()
        records = [from_json(line) for line in _thinned(lines, most)]
        curve: dict[str, list[float | None]] = {
            name: [record.get(name) for record in records] for name in ("tokens", *MEASURES)
        }
    except (OSError, ValueError, AttributeError):
        return None
    return curve if records and all(isinstance(tokens, int) for tokens in curve["tokens"]) else None


def _thinned(lines: Sequence[Any], most: int) -> list[Any]:
    """``lines``, or ``most`` of them with the first and the last."""
    if len(lines) <= most:
        return list(lines)
    return [lines[round(place * (len(lines) - 1) / (most - 1))] for place in range(most)]
