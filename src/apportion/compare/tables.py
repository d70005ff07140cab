"""A comparison as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from ..errors import InvalidInput
from ..metrics.intervals import Interval
from .base import Comparison

TITLES = {
    "l0": "L0",
    "fvu": "FVU",
    "cosine": "cosine",
    "ce_score": "CE score",
    "kl": "KL",
    "hidden_error": "hidden error",
    "never_fires": "never fires",
    "dead": "dead in training",
    "density_gini": "density Gini",
    "allocation_efficiency": "efficiency",
    "tokens_per_s": "tokens/s",
}
"""The measures that the first table shows, and what it calls them."""
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
)


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
        for measure, value in point.measures.items():
            writer.writerow(["points", point.method, None, point.k, None, measure, *_parts(value), None])
    for level in comparison.levels:
        head = ["levels", level.method, None, level.k, level.l0, level.measure]
        writer.writerow([*head, *_parts(level.value), None])
    for one in comparison.differences:
        head = ["differences", one.method, one.reference, one.k, one.l0, one.measure]
        writer.writerow([*head, *_parts(one.value), one.excludes_zero])
    return text.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """Three kinds of tables for people: measures at every k, at equal measured L0, and differences."""
    tables = [_points(comparison)]
    for measure in dict.fromkeys(level.measure for level in comparison.levels):
        tables.append(_levels(comparison, measure))
    if comparison.differences:
        tables.append(_differences(comparison))
    return "\n".join(tables)


def _points(comparison: Comparison) -> str:
    shown = [name for name in TITLES if any(name in point.measures for point in comparison.points)]
    rows = [
        [
            point.method,
            f"{point.k:g}",
            str(sum((sae.method, sae.k) == (point.method, point.k) for sae in comparison.saes)),
            *(_cell(point.measures.get(name), name) for name in shown),
        ]
        for point in comparison.points
    ]
    documents = "" if comparison.documents is None else f" of {comparison.documents:,} documents"
    title = f"On {comparison.tokens:,} held-out tokens{documents}"
    return _table(title, ["method", "k", "seeds", *(TITLES[name] for name in shown)], rows)


def _levels(comparison: Comparison, measure: str) -> str:
    levels = [level for level in comparison.levels if level.measure == measure]
    cells = {(level.method, level.k): level for level in levels}
    k = sorted({level.k for level in levels})
    heads = []
    for own in k:
        places = [level.l0 for level in levels if level.k == own]
        heads.append(f"L0 {sum(places) / len(places):.2f}")
    rows = []
    for method in dict.fromkeys(level.method for level in levels):
        found = [cells.get((method, own)) for own in k]
        rows.append([method, *("" if one is None else _cell(one.value, measure) for one in found)])
    return _table(f"{TITLES[measure]} at equal measured L0", ["method", *heads], rows)


def _differences(comparison: Comparison) -> str:
    rows = []
    for one in comparison.differences:
        share = "" if one.share is None else f" ({one.share:+.1%})"
        zero = {True: "yes", False: "no", None: ""}[one.excludes_zero]
        names = [one.method, one.reference, TITLES[one.measure], f"{one.l0:.2f}"]
        rows.append([*names, _cell(one.value, one.measure, "+") + share, zero])
    heads = ["method", "less", "measure", "at L0", "difference", "interval excludes 0"]
    return _table("Differences at equal measured L0, paired by seed", heads, rows)


def _parts(value: Interval) -> list[object]:
    return [value.mean, value.half, value.n, value.over]


def _cell(value: Interval | None, measure: str, sign: str = "") -> str:
    if value is None:
        return ""
    form = {"l0": ".2f", "tokens_per_s": ",.0f"}.get(measure, ".4f")
    text = format(value.mean, sign + form)
    return text if value.half is None else f"{text} ± {format(value.half, form)}"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (heads, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([f"**{title}**", "", *padded, ""])
