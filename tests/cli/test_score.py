"""``apportion score``: the file, the report, and one sentence on bad input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apportion.activations import StoreSource, capture_to_store, load_documents, load_model
from apportion.complexity import Text, load_scores
from apportion.errors import InvalidInput

from ..complexity.conftest import EASY, HARD, shared
from ..complexity.judge_server import SCORE, JudgeServer, Reply, rated
from .conftest import Command
from .test_bad_input import assert_refused

ROW_KEYS = {"scorer", "direction", "texts", "scored", "failed", "mean", "std", "min", "max", "out"}
KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An easy and a hard text with their ease, and one of two words without."""
    lines = [
        {"id": "easy", "text": EASY, "ease": 1.5},
        {"id": "hard", "text": HARD, "ease": "-2"},
        {"text": "Two words.", "ease": "n/a"},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with JudgeServer() as running:
        yield running


def test_readability(command: Command, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("textstat")
    out = tmp_path / "new" / "scores.jsonl"
    where = ["score", "--data", data, "--scorer", "readability", "--formula", "flesch_reading_ease", "--out", out]
    done = command(*where, "--json")
    assert done.status == 0
    assert done.err == "1 of 3 texts were left out: 1 with fewer than 10 words (first: '2')\n"
    (row,) = done.rows
    assert row.keys() == ROW_KEYS | {"failures", "settings"} and row["failures"] == {"fewer than 10 words": 1}
    scores = load_scores(out)
    assert (scores.header.scorer, scores.header.direction) == ("readability", -1)
    assert scores.header.settings["formula"] == "flesch_reading_ease"
    easy, hard, _ = scores.align(
        ["easy", "hard", "2"], digests=[Text("", t).digest for t in (EASY, HARD, "Two words.")]
    )
    assert easy > 60 > hard
    before = out.read_bytes()
    again = command(*where, "--set", "min_words=1")
    assert again.status == 0 and len(again.out.splitlines()) == 2 and again.err == ""
    assert len(load_scores(out).values) == 3 and out.read_bytes() != before


def test_labels_of_ones_own_fit_a_store_of_the_same_data(command: Command, data: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "scores.jsonl", tmp_path / "store"
    labels = ["--scorer", "column", "--column", "ease", "--direction", "down"]
    done = command("score", "--data", data, *labels, "--out", out, "--json")
    assert "1 with no finite number in the column 'ease' (first: '2')" in done.err
    model = load_model(str(shared("models/tiny-lm")))
    capture_to_store(model, "gpt_neox.layers.0", load_documents(data), store, context=32)
    values = load_scores(out).align(StoreSource(store).documents)
    assert values[:2].tolist() == [1.5, -2.0] and values[2] != values[2]
    limited = command("score", "--data", data, *labels, "--out", out, "--limit", "1", "--json").rows
    assert limited[0]["texts"] == 1
    with pytest.raises(InvalidInput, match=r"of 3 texts, 2 have no score \(first: 'hard'\)"):
        load_scores(out).align(StoreSource(store).documents)


@pytest.mark.parametrize("cut", [{}, {"skip_first": 2, "bos": "yes"}], ids=["plain", "cut otherwise"])
def test_surprisal_of_contexts_that_a_capture_has_too(
    command: Command, data: Path, tmp_path: Path, cut: dict[str, Any]
) -> None:
    options = [part for name, value in cut.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    model, out, store = str(shared("models/tiny-lm")), tmp_path / "scores.jsonl", tmp_path / "store"
    where = ["score", "--data", data, "--scorer", "surprisal", "--model", model, "--out", out]
    done = command(*where, "--context", "32", "--tokenizer", model, *options, "--json")
    assert ("adds none" in done.err) == (not cut)
    assert done.status == 0 and done.rows[0]["settings"]["context"] == 256
    capture_to_store(load_model(model), "gpt_neox.layers.0", load_documents(data), store, context=32, **cut)
    source = StoreSource(store, heldout=0.999)
    contexts = [batch for part in ("calibrate", "evaluate") for batch in source.contexts(part)]
    documents = [source.documents[int(i)] for batch in contexts for i in batch.document]
    starts = [int(start) for batch in contexts for start in batch.start]
    scores = load_scores(out)
    assert len(scores.rows) == len(starts) > 6
    assert scores.align(documents, starts).min() > 1
    assert {row.start for row in scores.rows} == set(starts)
    assert {"skip_first", "bos"} & set(scores.header.data) == set(cut)
    whole = command(*where, "--set", "context=16", "--json")
    assert whole.rows[0]["texts"] == 3 and whole.rows[0]["mean"] > 3


def test_a_judge_is_paid_once_and_the_key_stays_out_of_every_file(
    command: Command, data: Path, server: JudgeServer, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    server.behave = lambda text, before: Reply(500, KEY.encode()) if text == HARD else rated()
    where = ["score", "--data", data, "--scorer", "llm", "--model", "m", "--url", server.url, "--out", out]
    quick = ["--set", "attempts=2", "--set", "backoff=0.001", "--set", "per_minute=100000"]
    first = command(*where, *quick, "--json")
    assert first.status == 0 and first.rows[0]["failures"] == {"status 500": 1}
    assert "1 of 3 texts were left out: 1 with status 500 (first: 'hard')" in first.err
    server.behave = lambda text, before: rated()
    second = command(*where, *quick, "--json")
    assert second.rows[0]["scored"] == 3 and second.rows[0]["mean"] == pytest.approx(SCORE)
    assert server.asked == {EASY: 1, HARD: 3, "Two words.": 1}
    assert "all 3 scores are" in second.err
    row = load_scores(out).rows[0]
    assert row.parts["lexical"] == 1
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY not in path.read_text()
    assert KEY not in first.out + first.err + second.out + second.err


def test_a_judge_that_refuses_the_key_says_what_to_set(
    command: Command, data: Path, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.jsonl"
    where = ["score", "--data", data, "--scorer", "llm", "--model", "m", "--url", server.url, "--out", out]
    server.behave = lambda text, before: Reply(401)
    assert_refused(command(*where), r"refuses the key \(401\); set the environment variable OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert_refused(command(*where), r"OPENAI_API_KEY is not set, .*name another one with key_env")
    assert sum(server.asked.values()) == 1 and not out.exists()


def test_a_scorer_of_ones_own(command: Command, data: Path, tmp_path: Path) -> None:
    from apportion.complexity import ScorerConfig

    plugin = tmp_path / "longest.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from apportion.complexity import Scored, Scorer, ScorerConfig\n"
        "class LengthConfig(ScorerConfig):\n"
        '    kind: Literal["length"] = "length"\n'
        "    factor: float = 1.0\n"
        "    def build(self, tools):\n"
        "        return Length(self)\n"
        "class Length(Scorer):\n"
        "    direction = 1\n"
        "    def __init__(self, config):\n"
        "        self.config = config\n"
        "    def score(self, texts):\n"
        "        for text in texts:\n"
        "            yield Scored.of(text, self.config.factor * len(text.text))\n"
    )
    options = ["--scorer", "length", "--plugin", plugin, "--set", "factor=2", "--out", tmp_path / "s.jsonl"]
    try:
        assert command("score", "--data", data, *options).status == 0
        assert load_scores(tmp_path / "s.jsonl").rows[2].value == 2 * len("Two words.")
    finally:
        ScorerConfig.members.pop("length", None)


BAD = {
    "scorer unknown": (["--scorer", "readibility"], r"kind 'readibility'; nearest: 'readability'"),
    "formula unknown": (["--formula", "smog"], r"unknown formula 'smog'; nearest: 'smog_index'"),
    "flag of another scorer": (
        ["--column", "ease"],
        r"unknown key 'column' \(known keys: formula, kind, min_words",
    ),
    "set without value": (["--set", "min_words"], r"not of the form SETTING=VALUE"),
    "set out of range": (["--set", "min_words=0"], r"'min_words' = 0"),
    "set unknown": (["--set", "minwords=3"], r"unknown key 'minwords'"),
    "column missing": (["--scorer", "column"], r"'column' is missing; set it"),
    "model missing": (["--scorer", "surprisal"], r"'model' is missing; set it"),
    "no number at all": (
        ["--scorer", "column", "--column", "id"],
        r"none of the 3 texts got a score: 3 with no finite number in the column 'id' \(first: 'easy'\)",
    ),
    "every text too short": (["--set", "min_words=5000"], r"none of the 3 texts .* 3 with fewer than 5000 words"),
    "model unknown": (["--scorer", "surprisal", "--model", "./none"], r"no model folder"),
    "limit zero": (["--limit", "0"], r"--limit = 0"),
    "limit negative": (["--limit", "-1"], r"--limit = -1"),
    "context alone": (["--context", "32"], r"--context and --tokenizer belong together"),
    "tokenizer alone": (["--tokenizer", "x"], r"--context and --tokenizer belong together"),
    "text field": (["--text-field", "body"], r"line 1, has no text in field 'body'"),
    "plugin unknown": (["--plugin", "none.py"], r"there is no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_score_refuses(command: Command, data: Path, tmp_path: Path, case: str) -> None:
    pytest.importorskip("textstat")
    arguments, words = BAD[case]
    out = tmp_path / "scores.jsonl"
    scorer = [] if "--scorer" in arguments else ["--scorer", "readability"]
    assert_refused(command("score", "--data", data, *scorer, "--out", out, *arguments), words)
    assert not out.exists()


def test_places_that_will_not_do(command: Command, data: Path, tmp_path: Path) -> None:
    where = ["score", "--scorer", "readability"]
    for out, words in (
        (data, r"is there and holds no scores; give the path of a new file"),
        (tmp_path, r"is a folder; give the path of a file"),
        (data / "below", r"cannot write"),
    ):
        before = data.read_bytes()
        assert_refused(command(*where, "--data", data, "--out", out), words)
        assert data.read_bytes() == before
    assert_refused(
        command(*where, "--data", tmp_path / "no.jsonl", "--out", tmp_path / "s"), r"cannot read .*no\.jsonl"
    )
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert_refused(command(*where, "--data", data, "--out", tmp_path / "closed" / "s"), r"cannot be written")


def test_ids_that_are_not_unique_are_counted(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [{"id": i % 4, "text": EASY} for i in range(7)]
    path.write_text("\n".join(map(json.dumps, lines)))
    done = command("score", "--data", path, "--scorer", "readability", "--out", tmp_path / "s.jsonl")
    assert_refused(done, r"3 ids belong to more than one document of .* \(first: '0'\)")
