"""What a training's log says about how an SAE got there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InvalidInput
from ..files import from_json, read_bytes, what_is
from ..training.caveats import number
from ..training.log import check_log

MEASURES = ("fvu", "l0", "dead", "never_fired")
"""What a record of every rule holds."""
_REMEDY = "copy the file again or take it away"

Curve: TypeAlias = dict[str, list[float | None]]
"""``tokens`` and each of ``MEASURES``, None where a record does not say."""


def read_curve(folder: Path, most: int = 200) -> Curve | None:
    """``tokens`` and each of ``MEASURES`` over a run, at most ``most`` records of it, evenly spaced.

    None where there is no log: an SAE may have been moved without it.

    Raises:
        InvalidCheckpoint: it was damaged since it was written.
        InvalidInput: a line is no record, or holds something else than numbers; with the place of the first.
    """
    where = folder / "log.jsonl"
    if what_is(where) is None:
        return None
    try:
        data = read_bytes(where)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{where} cannot be read ({error}); {_REMEDY}") from None
    if b'"check"' in data:  # older versions wrote none
        check_log(where, data)
    records = [_record(line, f"{where}, line {place}") for place, line in enumerate(lines, 1)]
    if not records:
        return None
    thinned = _thinned(records, most)
    return {name: [record[name] for record in thinned] for name in ("tokens", *MEASURES)}


def known_dead(curve: Curve, dead_after: float | None) -> Curve:
    """Without what older versions wrote as dead before any feature could have been silent for so long."""
    if dead_after is None:
        return curve
    pairs = zip(curve["tokens"], curve["dead"], strict=True)
    return curve | {"dead": [dead if tokens and tokens >= dead_after else None for tokens, dead in pairs]}


def _record(line: str, place: str) -> dict[str, float | None]:
    """What a line says of each of ``MEASURES``, and its tokens, which every line has."""
    try:
        found = from_json(line)
    except ValueError as error:
        raise InvalidInput(f"{place} is not valid JSON ({error}); {_REMEDY}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{place} is no record but {line[:40]!r}; {_REMEDY}")
    numbers = {name: number(found.get(name)) for name in ("tokens", *MEASURES)}
    for name, value in numbers.items():
        if value is None and (name == "tokens" or found.get(name) is not None):
            said = repr(found.get(name)).strip("'")[:40]
            raise InvalidInput(f"{place} has {name} = {said}, which is no number; {_REMEDY}")
    return numbers


def _thinned(lines: Sequence[Any], most: int) -> list[Any]:
    """``lines``, or ``most`` of them with the first and the last."""
    if len(lines) <= most:
        return list(lines)
    return [lines[round(place * (len(lines) - 1) / (most - 1))] for place in range(most)]
