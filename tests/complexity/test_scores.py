"""A file of scores comes back as it was, names its texts as a capture does, and what does not fit is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from apportion.activations import StoreSource, capture_to_store, load_documents, load_model
from apportion.complexity import Scored, Scores, Text, fit_scale, load_scores, save_scores
from apportion.complexity.scores import Header
from apportion.errors import InvalidConfig, InvalidInput, StorageFailure

from .conftest import shared

HEADER = Header(scorer="column", direction=-1, settings={"field": "ease"})
ODD = ["a", "b\u2028c", "é'\"\n", "4"]


def rows(values: list[float | None], starts: list[int | None] | None = None) -> list[Scored]:
    texts = [
        Text(name, f"text {name}", start) for name, start in zip(ODD, starts or [None] * len(ODD), strict=True)
    ]
    return [
        Scored.failed(text, "too short") if value is None else Scored.of(text, value, {"part": value / 2})
        for text, value in zip(texts, values, strict=True)
    ]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    for starts in (None, [0, 7, 0, 3]):
        saved = save_scores(tmp_path / "s.jsonl", HEADER, rows([0.1, None, -3e300, 5], starts))
        loaded = load_scores(tmp_path / "s.jsonl")
        assert loaded == saved
        assert loaded.values.tolist() == [0.1, -3e300, 5.0] and loaded.failures == {"too short": 1}
    other = save_scores(tmp_path / "t.jsonl", HEADER, rows([1, 2, 3, 4]))
    assert other.header.fingerprint != saved.header.fingerprint != ""


def test_the_file_is_lines_of_strict_json(tmp_path: Path) -> None:
    save_scores(tmp_path / "s.jsonl", HEADER, rows([0.1, None, 2, 5]))
    header, *lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert header["format"] == "apportion-scores" and header["scorer"] == "column" and header["direction"] == -1
    assert lines[0].keys() == {"id", "text", "score", "parts"} and lines[1].keys() == {"id", "text", "failed"}


def test_align_follows_the_order_asked_for(tmp_path: Path) -> None:
    scores = Scores(HEADER, tuple(rows([1, None, 3, 4])))
    found = scores.align(["4", "b\u2028c", "a"])
    assert found[[0, 2]].tolist() == [4.0, 1.0] and math.isnan(found[1])
    assert scores.align(["a", "a", "4"], starts=[0, 9, 0]).tolist() == [1.0, 1.0, 4.0]
    by_context = Scores(HEADER, tuple(rows([1, 2, 3, 4], [0, 7, 0, 3])))
    assert by_context.align(["b\u2028c", "a"], starts=[7, 0]).tolist() == [2.0, 1.0]
    with pytest.raises(InvalidInput, match="belong to contexts"):
        by_context.align(["a"])
    with pytest.raises(InvalidInput, match=r"of 2 texts, 1 have no score \(first: 'a' at token 8\)"):
        by_context.align(["a", "a"], starts=[0, 8])


def test_texts_that_do_not_fit_are_counted() -> None:
    scores = Scores(HEADER, tuple(rows([1, 2, 3, 4])))
    names = ["a", "x", "a", "y", "4"]
    digests = [Text(name, f"text {name}" if name == "a" else "changed").digest for name in names]
    with pytest.raises(
        InvalidInput,
        match=r"of 5 texts, 2 have no score \(first: 'x'\), 1 occur more than once \(first: 'a'\), "
        r"1 have changed since they were scored \(first: '4'\); score the same data",
    ):
        scores.align(names, digests=digests)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id": "a", "score": NaN}', '{"id": "b", "score": 1}'], "1 without a finite number as score"),
        (['{"id": "a"}', '{"id": "b", "score": "high"}'], "2 without a finite number as score"),
        (['{"id": "a", "score": true}', '{"id": "b", "score": 1e999}'], "2 without a finite number as score"),
        (['{"id": "a", "score": 1}'] * 3 + ['{"id": "b", "score": 1}'], "2 with the id of another row"),
        (['{"score": 1}', '{"id": null, "score": 1}', '{"id": "b", "score": 1}'], "2 without an id"),
        (['{"id": "a", "score": 1}', '{"id": "b", "start": 0, "score": 1}'], "2 of contexts among those of doc"),
        (["{broken", "[1]"], "2 that are no JSON objects"),
        ([], "none at all"),
    ],
)
def test_unusable_rows_are_counted(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join([HEADER.model_dump_json(), *lines]))
    with pytest.raises(InvalidInput, match=f"unusable rows: .*{words}"):
        load_scores(path)


def test_a_file_of_ones_own_making_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(
        '{"format": "apportion-scores", "scorer": "mine", "direction": 1}\n'
        '{"id": 7, "score": 1}\n{"id": "8", "score": 2.5}\n'
    )
    scores = load_scores(path)
    digests = [Text("7", "any").digest, Text("8", "text").digest]
    assert scores.align(["8", "7"], digests=digests).tolist() == [2.5, 1.0]


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for raw in (b"", b"[]", b'{"text": "x"}', b"{", b"\n\n"):
        path.write_bytes(raw)
        with pytest.raises(InvalidInput, match="does not begin with the header"):
            load_scores(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="binary"):
        load_scores(path)
    path.write_text('{"format": "apportion-scores", "scorer": "x", "direction": 0}')
    with pytest.raises(InvalidConfig, match=r"line 1: 'direction' = 0"):
        load_scores(path)
    with pytest.raises(StorageFailure, match="No such file"):
        load_scores(tmp_path / "none")


def test_the_scale_knows_the_training_texts_only_and_points_to_complexity() -> None:
    ease = np.array([1.0, 2.0, 3.0, 100.0])
    scale = fit_scale(ease[:3], -1)
    z = scale(ease)
    assert z[:3].mean() == pytest.approx(0) and z[:3].std() == pytest.approx(1)
    assert z[0] > z[1] > z[2] > z[3] and z[3] == pytest.approx(-98 / np.std([1, 2, 3]))
    assert np.isnan(scale(np.array([np.nan])))[0]
    assert np.array_equal(ease, [1.0, 2.0, 3.0, 100.0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3.0] * 12, "all 12 training texts have the score 3, so no probe can be fitted"),
        ([0.1 + 0.2, 0.3, 0.3], "all 3 training texts"),
        ([0.0, 0.0], "all 2 training texts have the score 0"),
        ([1.0, np.nan, np.inf], "3 training texts have 2 scores that are no finite numbers"),
        ([1.0], "give two at least"),
    ],
)
def test_scores_that_no_probe_can_be_fitted_to(values: list[float], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        fit_scale(np.array(values), 1)


def test_ids_are_those_of_a_capture_of_the_same_data(tmp_path: Path) -> None:
    model = load_model(str(shared("models/tiny-lm")))
    data = tmp_path / "d.jsonl"
    lines = [{"text": f"Text number {i * i} says it {'again and ' * i}again.", "ease": i / 3} for i in range(12)]
    lines[3]["id"], lines[5]["text"] = "named", "  "  # one with an id of its own, one that is blank
    data.write_text("\n".join(map(json.dumps, lines)))
    documents = load_documents(data, target_field="ease")
    capture_to_store(model, "gpt_neox.layers.0", documents, tmp_path / "store", context=16)
    source = StoreSource(tmp_path / "store", heldout=0)
    order = np.random.default_rng(0).permutation(len(documents))
    scored = [Scored.of(Text(documents[i].id, documents[i].text), documents[i].target or 0.0) for i in order]
    values = save_scores(tmp_path / "s.jsonl", HEADER, scored).align(source.documents)
    batch = next(iter(source.stream(64, 0)))
    assert batch.document is not None and batch.target is not None
    assert np.allclose(values[batch.document], batch.target)


def test_a_score_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    rows = [Scored(str(i), None, "", i / 8) for i in range(4)]
    save_scores(path, Header(scorer="column", direction=1), rows)
    assert load_scores(path).rows == tuple(rows)
    whole = path.read_text()
    for old, new in (("0.125", "0.126"), ('"direction": 1', '"direction": -1'), ('{"id": "2"', '{"id": "7"')):
        path.write_text(whole.replace(old, new))
        with pytest.raises(InvalidInput, match="does not match its checksum"):
            load_scores(path)
    lines = whole.splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(InvalidInput, match="does not match its checksum"):
        load_scores(path)
    head = {key: value for key, value in json.loads(lines[0]).items() if key != "checksum"}
    path.write_text("\n".join([json.dumps(head), *lines[2:]]))
    assert len(load_scores(path).rows) == 3
