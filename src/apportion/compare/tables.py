"""A comparison as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from ..errors import InvalidInput
from ..metrics.intervals import Interval
from ..training.caveats import MARK, marked
from .base import Comparison, Point

TITLES = {
    "l0": "L0",
    "fvu": "FVU",
    "cosine": "cosine",
    "ce_score": "CE score",
    "kl": "KL",
    "hidden_error": "hidden error",
    "never_fires": "never fires",
    "silent": "silent",
    "dead": "dead in training",
    "never_fired": "never fired in training",
    "density_gini": "density Gini",
    "allocation_efficiency": "efficiency",
    "tokens_per_s": "tokens/s",
}
"""The measures that the first table shows, and what it calls them."""
UNKNOWN = "–"
"""Stands in tables for a number that is not known."""
CSV_COLUMNS = (
    "table",
    "method",
    "reference",
    "k",
    "l0",
    "measure",
    "value",
    "half",
    "n",
    "over",
    "excludes_zero",
    "caveats",
)


class Table(NamedTuple):
    """Words and numbers as people read them: a row of heads, and rows that begin with what they are about.

    ``caveats`` are sentences on the SAEs behind the cells that bear ``MARK``.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    caveats: Sequence[str] = ()


def to_json(comparison: Comparison) -> str:
    """All of it, as an object that ``from_json`` reads."""
    return json.dumps(asdict(comparison), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Comparison:
    """What ``to_json`` wrote. Raises ``InvalidInput`` for anything else."""
    try:
        return TypeAdapter(Comparison).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the text"
        raise InvalidInput(f"this is no comparison ({place}: {fault['msg']}); give what to_json wrote") from None


def to_csv(comparison: Comparison) -> str:
    """A line per number, of all tables: ``points``, ``levels`` and ``differences``. Numbers are exact."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for point in comparison.points:
        said = " ".join(_caveats_of(comparison, _behind(comparison, point)))
        for measure, value in point.measures.items():
            writer.writerow(["points", point.method, None, point.k, None, measure, *_parts(value), None, said])
    for level in comparison.levels:
        head = ["levels", level.method, None, level.k, level.l0, level.measure]
        said = " ".join(_caveats_of(comparison, level.read_from))
        writer.writerow([*head, *_parts(level.value), None, said])
    for one in comparison.differences:
        head = ["differences", one.method, one.reference, one.k, one.l0, one.measure]
        said = " ".join(_caveats_of(comparison, one.read_from))
        writer.writerow([*head, *_parts(one.value), one.excludes_zero, said])
    return text.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """``tables``, as Markdown, and below them what is wrong with the SAEs that are marked there."""
    sentences = dict.fromkeys(sentence for sae in comparison.saes for sentence in sae.caveats)
    below = [part for sentence in sentences for part in (f"{MARK} {sentence}", "")]
    return "\n".join([*(_markdown(table) for table in tables(comparison)), *below])


def tables(comparison: Comparison) -> list[Table]:
    """Three kinds of tables for people: measures at every k, at equal measured L0, and differences."""
    measures = dict.fromkeys(level.measure for level in comparison.levels)
    found = [_points(comparison), *(_levels(comparison, measure) for measure in measures)]
    return [*found, _differences(comparison)] if comparison.differences else found


def caveats_of(comparison: Comparison, point: Point) -> list[str]:
    """What is wrong with the SAEs of a method at one k."""
    return _caveats_of(comparison, _behind(comparison, point))


def _behind(comparison: Comparison, point: Point) -> list[str]:
    """The names of the SAEs that a point is the mean of."""
    return [sae.name for sae in comparison.saes if (sae.method, sae.k) == (point.method, point.k)]


def _caveats_of(comparison: Comparison, names: Collection[str]) -> list[str]:
    return [sentence for sae in comparison.saes if sae.name in names for sentence in sae.caveats]


def _points(comparison: Comparison) -> Table:
    shown = [name for name in TITLES if any(name in point.measures for point in comparison.points)]
    rows = []
    for point in comparison.points:
        names = _behind(comparison, point)
        cells = [cell_of(point.measures.get(name), name) for name in shown]
        method = marked(point.method, _caveats_of(comparison, names))
        rows.append([method, f"{point.k:g}", str(len(names)), *cells])
    documents = "" if comparison.documents is None else f" of {comparison.documents:,} documents"
    title = f"On {comparison.tokens:,} held-out tokens{documents}"
    heads = ["method", "k", "seeds", *(TITLES[name] for name in shown)]
    return Table(title, heads, rows, _caveats_of(comparison, [sae.name for sae in comparison.saes]))


def _levels(comparison: Comparison, measure: str) -> Table:
    levels = [level for level in comparison.levels if level.measure == measure]
    cells = {(level.method, level.k): level for level in levels}
    k = sorted({level.k for level in levels})
    heads = []
    for own in k:
        places = [level.l0 for level in levels if level.k == own]
        heads.append(f"L0 {sum(places) / len(places):.2f}")
    rows = []
    for method in dict.fromkeys(point.method for point in comparison.points):
        row = [method]
        for own in k:
            one = cells.get((method, own))
            said = _caveats_of(comparison, one.read_from if one else ())
            row.append(marked(cell_of(one.value, measure), said) if one else "")
        rows.append(row)
    read = [name for level in levels for name in level.read_from]
    title = f"{TITLES[measure]} at equal measured L0"
    return Table(title, ["method", *heads], rows, _caveats_of(comparison, read))


def _differences(comparison: Comparison) -> Table:
    rows = []
    for one in comparison.differences:
        share = "" if one.share is None else f" ({one.share:+.1%})"
        zero = {True: "yes", False: "no", None: ""}[one.excludes_zero]
        names = [one.method, one.reference, TITLES[one.measure], f"{one.l0:.2f}"]
        cell = marked(cell_of(one.value, one.measure, "+") + share, _caveats_of(comparison, one.read_from))
        rows.append([*names, cell, zero])
    heads = ["method", "less", "measure", "at L0", "difference", "interval excludes 0"]
    read = [name for one in comparison.differences for name in one.read_from]
    title = "Differences at equal measured L0, paired by seed"
    return Table(title, heads, rows, _caveats_of(comparison, read))


def _parts(value: Interval) -> list[object]:
    return [value.mean, value.half, value.n, value.over]


def cell_of(value: Interval | None, measure: str, sign: str = "") -> str:
    """A value with half its interval, in as many digits as its measure is read in; a dash if it is not known."""
    if value is None:
        return UNKNOWN
    form = {"l0": ".2f", "tokens_per_s": ",.0f"}.get(measure, ".4f")
    text = format(value.mean, sign + form)
    return text if value.half is None else f"{text} ± {format(value.half, form)}"


def _markdown(table: Table) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (table.heads, *table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.heads))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([f"**{table.title}**", "", *padded, ""])
