"""A comparison in three formats: nothing is lost in JSON and CSV, and Markdown holds the same cells."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from apportion.compare import (
    Comparison,
    Difference,
    Interval,
    Level,
    Measured,
    Point,
    Seed,
    from_json,
    to_csv,
    to_json,
    to_markdown,
)
from apportion.compare.tables import tables
from apportion.errors import InvalidInput

SAES = tuple(
    Measured(f"{name}-k{k}", name, k, Seed(0, None), {"l0": k - 0.1, "fvu": 1 / 3, "ce_score": None})
    for name in ("a", "b|c")
    for k in (8.0, 16.0)
)
POINTS = tuple(
    Point(
        sae.method, sae.k, {"l0": Interval(sae.k - 0.1, None, 1), "fvu": Interval(1 / 3, 0.01, 30, "documents")}
    )
    for sae in SAES
)
LEVELS = (
    Level("a", 8.0, 8.0, "fvu", Interval(0.3, 0.02, 3)),
    Level("a", 16.0, 15.9, "fvu", Interval(0.2, 0.02, 3)),
    Level("b|c", 16.0, 15.9, "fvu", Interval(0.21, None, 1)),
)
DIFFERENCES = (
    Difference("b|c", "a", 8.0, 8.0, "fvu", Interval(-0.01, 0.002, 3), -0.03, True),
    Difference("b|c", "a", 16.0, 15.9, "cosine", Interval(0.01, None, 1), None, None),
)
MADE = Comparison(1234, 56, SAES, POINTS, LEVELS, DIFFERENCES, {"d": "no."}, ("a note",))


def test_json_and_back() -> None:
    assert from_json(to_json(MADE)) == MADE
    assert json.loads(to_json(MADE))["differences"][0]["excludes_zero"] is True


def test_other_json_is_refused() -> None:
    for text in ("", "[]", "{}", '{"tokens": 1}'):
        with pytest.raises(InvalidInput, match="this is no comparison"):
            from_json(text)


def test_csv_holds_every_number_exactly() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(MADE))))
    assert [line["table"] for line in lines] == ["points"] * 8 + ["levels"] * 3 + ["differences"] * 2
    points: dict[tuple[str, float], dict[str, Interval]] = {}
    for line in lines[:8]:
        points.setdefault((line["method"], float(line["k"])), {})[line["measure"]] = interval(line)
    assert tuple(Point(method, k, measures) for (method, k), measures in points.items()) == POINTS
    levels = [
        Level(line["method"], float(line["k"]), float(line["l0"]), line["measure"], interval(line))
        for line in lines[8:11]
    ]
    assert tuple(levels) == LEVELS
    for line, one in zip(lines[11:], DIFFERENCES, strict=True):
        assert (line["reference"], interval(line)) == (one.reference, one.value)
        assert line["excludes_zero"] == ("" if one.excludes_zero is None else str(one.excludes_zero))


def interval(line: dict[str, str]) -> Interval:
    half = float(line["half"]) if line["half"] else None
    return Interval(float(line["value"]), half, int(line["n"]), line["over"])  # type: ignore[arg-type]


def test_markdown_holds_the_same_cells_and_empty_ones() -> None:
    text = to_markdown(MADE)
    tables = [cells(block) for block in text.split("**")[2::2]]
    points, levels, differences = tables
    assert points[0] == ["method", "k", "seeds", "L0", "FVU"]
    assert points[1] == ["a", "8", "1", "7.90", "0.3333 ± 0.0100"]
    assert levels == [
        ["method", "L0 8.00", "L0 15.90"],
        ["a", "0.3000 ± 0.0200", "0.2000 ± 0.0200"],
        ["b/c", "", "0.2100"],
    ]
    assert differences[1] == ["b/c", "a", "FVU", "8.00", "-0.0100 ± 0.0020 (-3.0%)", "yes"]
    assert differences[2] == ["b/c", "a", "cosine", "15.90", "+0.0100", ""]
    assert "1,234 held-out tokens of 56 documents" in text


def test_an_sae_with_caveats_is_marked_in_every_table_that_it_is_read_in() -> None:
    wrong = "run 'a-k8' ended its training at L0 = 3.0 and not at k = 8"
    saes = (replace(SAES[0], caveats=(wrong,)), *SAES[1:])
    levels = (
        replace(LEVELS[0], read_from=("a-k8.0",)),
        *(replace(one, read_from=("a-k16.0",)) for one in LEVELS[1:]),
    )
    differences = (replace(DIFFERENCES[0], read_from=("a-k8.0", "b|c-k8.0")), DIFFERENCES[1])
    made = replace(MADE, saes=saes, levels=levels, differences=differences)
    assert from_json(to_json(made)) == made
    text = to_markdown(made)
    points, level, difference = (cells(block) for block in text.split("**")[2::2])
    assert [row[0] for row in points[1:]] == ["a †", "a", "b/c", "b/c"]
    assert level[1] == ["a", "0.3000 ± 0.0200 †", "0.2000 ± 0.0200"]
    assert [row[4].endswith("†") for row in difference[1:]] == [True, False]
    assert text.endswith(f"\n\n† {wrong}\n"), "once, below all of them"
    assert [list(table.caveats) for table in tables(made)] == [[wrong]] * 3, "and for each that stands alone"
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    said = {(line["table"], line["method"], line["k"]) for line in lines if line["caveats"] == wrong}
    assert said == {("points", "a", "8.0"), ("levels", "a", "8.0"), ("differences", "b|c", "8.0")}


def cells(block: str) -> list[list[str]]:
    """The rows of a Markdown table without its rule; an escaped bar is a slash here."""
    lines = [line for line in block.replace("\\|", "/").splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(set("".join(row)) == {"-"} for row in found[1:2])
    return [found[0], *found[2:]]
