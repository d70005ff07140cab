"""``apportion score --probe`` and ``apportion train --scores``, from the command line to the saved SAE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import apportion as ap
from apportion.activations import capture_to_store, load_documents, load_model
from apportion.cli.probe import TABLE

from ..complexity.conftest import shared
from .conftest import Command
from .test_bad_input import assert_refused

MODULES = ["gpt_neox.layers.0", "gpt_neox.layers.1"]
ROW_KEYS = {"training_texts", *TABLE}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two layers, and two files of scores: of all texts, and of all but ten."""
    folder = tmp_path_factory.mktemp("probe")
    texts = [("Sir " * (i % 7 + 1)) + f"walked to town {i} and " + "so on " * (i % 5) for i in range(70)]
    lines = [{"id": str(i), "text": text, "ease": -(i % 7) - i / 1000} for i, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model = load_model(str(shared("models/tiny-lm")))
    capture_to_store(model, MODULES, load_documents(folder / "texts.jsonl"), folder / "store", context=48)
    header = {"format": "apportion-scores", "scorer": "column", "direction": -1}
    rows = [{"id": line["id"], "score": line["ease"]} for line in lines]
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, [header, *rows])))
    (folder / "fewer.jsonl").write_text("\n".join(map(json.dumps, [header, *rows[10:]])))
    return folder


def test_a_row_per_module_and_pooling(command: Command, place: Path) -> None:
    pytest.importorskip("sklearn")
    where = ["score", "--probe", "--store", place / "store", "--heldout", "0.4"]
    done = command(*where, "--scores", place / "scores.jsonl", "--json")
    assert done.status == 0, done.err
    rows = done.rows
    assert [(row["module"], row["pooling"]) for row in rows] == [
        (module, pooling) for module in MODULES for pooling in ("last", "mean", "every")
    ]
    assert all(row.keys() == ROW_KEYS for row in rows)
    assert {row["texts"] + row["training_texts"] for row in rows} == {70}
    best = [row for row in rows if row["best"]]
    assert len(best) == 1 and best[0]["cv_rmse"] == min(row["cv_rmse"] for row in rows)
    assert best[0]["spearman"] > 0.8, "how often a word comes is linear in the mean activation"
    table = command(*where, "--scores", place / "scores.jsonl").out.splitlines()
    assert len(table) == 7 and table[0].split()[:3] == ["module", "pooling", "texts"]
    column = ["--data", place / "texts.jsonl", "--scorer", "column", "--column", "ease", "--direction", "down"]
    scored = command(*where, *column, "--out", place / "made.jsonl", "--json")
    assert [row["spearman"] for row in scored.rows] == pytest.approx([row["spearman"] for row in rows])


def test_training_on_scores_from_the_command_line(command: Command, place: Path, tmp_path: Path) -> None:
    sizes = ["--d-sae", "192", "--k", "3,6", "--tokens", "1024", "--batch", "64", "--heldout", "0.4"]
    where = ["train", place / "store", "--module", MODULES[1], "--recipe", "adaptive_k", *sizes]
    done = command(*where, "--scores", place / "scores.jsonl", "--out", tmp_path / "runs", "--json")
    assert done.status == 0, done.err
    for row, k in zip(done.rows, (3, 6), strict=True):
        assert row["l0_calibrated"] == pytest.approx(k, rel=0.01)
        sae = ap.load(row["path"])
        assert sae.config.allocator.budget.kind == "ridge" and sae.allocator.budget.weight.any()
        targets = sae.metadata["source"]["targets"]
        assert targets["direction"] == -1 and targets["std"] > 0 and targets["unscored"] == 0
    last = command(
        *("train", place / "store", "--module", MODULES[1], "--recipe", "adaptive_k", "--paper", "pile"),
        *("--scores", place / "scores.jsonl", "--raw-scores", "--last-only", "--out", tmp_path / "last"),
        *("--k", "8", "--d-sae", "96", "--tokens", "320", "--batch", "16", "--heldout", "0.4"),
    )
    assert last.status == 0, last.err
    metadata = ap.load(tmp_path / "last" / "adaptive_k-k8").metadata
    assert metadata["source"]["last_only"] and "std" not in metadata["source"]["targets"]
    assert metadata["training"]["config"]["sae"]["allocator"]["budget"]["clip"] == [0, 10]
    assert command("evaluate", tmp_path / "runs", "--data", place / "store", "--module", MODULES[1]).status == 0


def test_what_is_missing_is_said(command: Command, place: Path, tmp_path: Path) -> None:
    store, out = place / "store", tmp_path / "runs"
    train = ["train", store, "--module", MODULES[0], "--recipe", "adaptive_k", "--out", out, "--k", "4"]
    for arguments, words in (
        (train, r"run 'adaptive_k-k4' learns from a score of every text .*--scores FILE"),
        ([*train, "--raw-scores"], r"--raw-scores says how to take --scores, which is not given"),
        ([*train, "--scores", place / "fewer.jsonl"], r"of 70 texts, 10 have no score \(first: '0'\)"),
        ([*train, "--scores", place / "none.jsonl"], r"cannot read .*none\.jsonl"),
        (
            [*train, "--scores", place / "scores.jsonl", "--set", "adaptive_k.allocator.budget.k_max=3"],
            r"k = 4 must lie between k_min = 1 and k_max = 3, for it is the mean",
        ),
        (["score", "--probe", "--scores", place / "scores.jsonl"], r"--store is missing; give what `capture`"),
        (["score", "--probe", "--store", store], r"--data, --scorer, --out is missing"),
        (["score", "--data", place / "texts.jsonl"], r"--scorer, --out is missing; say what to score"),
        (["score", "--probe", "--store", store, "--scores", place / "fewer.jsonl"], r"of 70 texts, 10 have no"),
    ):
        assert_refused(command(*arguments), words)
        assert not out.exists()
