"""The user's own labels are handed on as they are, and what is no number is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apportion.activations import iter_documents
from apportion.complexity import ColumnConfig, Text, Tools
from apportion.complexity.base import number_in
from apportion.errors import InvalidConfig


def test_labels_come_back_with_the_direction_that_was_stated() -> None:
    texts = [Text("a", "x", label=-1.5), Text("b", "y", label=None), Text("c", "z", label=3)]
    up, down = (ColumnConfig(column="ease", direction=name).build(Tools()) for name in ("up", "down"))
    assert (up.direction, down.direction) == (1, -1)
    assert [done.value for done in down.score(texts)] == [-1.5, None, 3.0]
    assert [done.failure for done in up.score(texts)] == [None, "no finite number in the column 'ease'", None]
    assert up.config.label_field == "ease"


def test_a_table_of_words_is_read_as_numbers_where_they_are_some(tmp_path: Path) -> None:
    held = [1, "2.5", "n/a", None, float("nan"), True, [3], "inf", 10**400, " -4 "]
    lines = [json.dumps({"id": i, "text": f"text {i}", "ease": value}) for i, value in enumerate(held)]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"id": 99, "text": "without the field"})]))
    documents = list(iter_documents(path, target_field="ease", read_target=number_in))
    assert [d.target for d in documents] == [1.0, 2.5, None, None, None, None, None, None, None, -4.0, None]


def test_bad_settings() -> None:
    for data, words in (
        ({}, "'column' is missing"),
        ({"column": ""}, "column"),
        ({"column": "x", "direction": "left"}, "left"),
    ):
        with pytest.raises(InvalidConfig, match=words):
            ColumnConfig.parse(data, "scorer column")
