"""The benchmark of a training's own steps: its rows, that it leaves the training alone, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

import apportion as ap
from apportion.bench.trained import bench_trained
from apportion.cli import main
from apportion.errors import ApportionError, InvalidCheckpoint, InvalidConfig, InvalidInput

SETTINGS = ap.TrainConfig(n_tokens=640, batch_size=64)


def source_of(seed: int = 0) -> ap.TensorSource:
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(seed))
    return ap.TensorSource(x, document=torch.arange(4000) // 20, heldout=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    configs = {name: ap.recipe(name).make(16, 48, 4, 0) for name in ("token_choice", "jump_relu")}
    ap.train(configs, source_of(), out, SETTINGS)
    return out


def test_a_row_per_run_at_the_sparsity_it_was_trained_to(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rows = {row["run"]: row for row in bench_trained(folder, source_of(), rounds=2)}
    assert set(rows) == {"token_choice", "jump_relu"}
    fixed = rows["token_choice"]
    assert fixed["l0"] == pytest.approx(4, abs=0.1) and (fixed["d_sae"], fixed["batch"]) == (48, 64)
    assert fixed["ratio"] == pytest.approx(fixed["step_s"] / fixed["product_s"]) and fixed["step_s"] > 0
    log = [json.loads(line) for line in (folder / "jump_relu" / "log.jsonl").read_text().splitlines()]
    assert rows["jump_relu"]["l0"] == pytest.approx(log[-1]["l0"], rel=0.15), (
        "its learned thresholds are in place"
    )
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_refuses_other_rows_a_training_without_a_checkpoint_and_a_single_round(folder, tmp_path):
    with pytest.raises(ApportionError, match="rows"):
        bench_trained(folder, source_of(seed=1))
    (tmp_path / "train.json").write_bytes((folder / "train.json").read_bytes())
    with pytest.raises(InvalidInput, match="has no checkpoint"):
        bench_trained(tmp_path, source_of())
    (tmp_path / "train.json").write_text('{"format": "apportion-training", "version": 1, "settings": {}}')
    with pytest.raises(InvalidCheckpoint, match="names no source, settings or runs"):
        bench_trained(tmp_path, source_of())
    (tmp_path / "train.json").write_text('{"format": "something else"}')
    with pytest.raises(InvalidCheckpoint, match="something else"):
        bench_trained(tmp_path, source_of())
    with pytest.raises(InvalidConfig, match="rounds = 1"):
        bench_trained(folder, source_of(), rounds=1)


def test_a_damaged_plan_is_one_sentence_from_the_command(folder, tmp_path, capsys):
    plan = json.loads((folder / "train.json").read_text())
    plan["source"]["rows"] = "400"
    command = ["bench", "trained", "--runs", str(tmp_path), "--data", str(tmp_path)]
    (tmp_path / "train.json").write_text(json.dumps(plan))
    assert main(command) == 2 and "does not match its checksum" in capsys.readouterr().err
    del plan["checksum"]  # as one of before there were any
    (tmp_path / "train.json").write_text(json.dumps(plan))
    assert main(command) == 2 and "rows = '400'" in capsys.readouterr().err


def test_the_command_wants_both_folders(folder, capsys):
    assert main(["bench", "trained", "--runs", str(folder)]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["bench", "step", "--runs", str(folder)]) == 2
    assert "bench trained" in capsys.readouterr().err
