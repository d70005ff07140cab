"""How a training ends: diverged, without a loss, or done and not done again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.errors import InvalidConfig, InvalidInput, TrainingDiverged

from .training_kit import Watched, config, records, settings, source, stop


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, log_every: int) -> None:
    wild = config(lr={"kind": "constant", "value": 1e30})
    with pytest.raises(TrainingDiverged, match=r"run 'wild': loss '\w+' is (nan|inf) at step \d+; lower"):
        ap.train({"wild": wild}, source(), tmp_path, settings(8, log_every=log_every))
    assert not (tmp_path / "wild" / "sae.json").exists()
    assert records(tmp_path / "wild")[0]["step"] == 0


def test_a_finished_training_returns_what_it_saved_without_a_step(tmp_path: Path) -> None:
    runs = {"a": config("token_choice"), "b": config("mutual_choice")}
    first = ap.train(runs, source(), tmp_path, settings(5))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = ap.train(runs, Watched(0, stop), tmp_path, settings(5))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    for name in runs:
        x = next(source().blocks("evaluate")).x
        assert torch.equal(again[name](x), first[name](x))
        assert again[name].metadata == first[name].metadata


def test_l0_is_the_budget_in_training_and_after_calibration(tmp_path: Path) -> None:
    runs = {"a": config("token_choice", 3), "b": config("mutual_choice", 3.5)}
    for sae in ap.train(runs, source(), tmp_path, settings(20)).values():
        training, calibration = sae.metadata["training"], sae.metadata["calibration"]
        assert training["steps"] == 20 and training["tokens"] == 1280
        assert training["l0_train"] == pytest.approx(sae.k, rel=0.02)
        assert calibration["l0"] == pytest.approx(sae.k, rel=0.02)
        assert calibration["tokens"] == sum(len(batch.x) for batch in source().blocks("calibrate"))


def test_nothing_held_out_is_said_before_the_training(tmp_path: Path) -> None:
    x = next(source().blocks("evaluate")).x
    with pytest.raises(InvalidInput, match="held-out"):
        ap.train({"a": config()}, ap.TensorSource(x, heldout=0.0), tmp_path / "out", settings(3))
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_loss_and_a_device_that_is_not_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no loss applies"):
        ap.train({"a": config(objectives=())}, source(), tmp_path / "a", settings(2))
    with pytest.raises(InvalidConfig, match="nothing to train"):
        ap.train({}, source(), tmp_path / "b", settings(2))
    for device in ("meta", "gpu"):
        with pytest.raises(InvalidConfig, match=f"device '{device}' cannot be used"):
            ap.train({"a": config()}, source(), tmp_path / "b", settings(2), device=device)
    assert not (tmp_path / "b").exists()


def test_a_rule_from_outside_trains_saves_loads_and_evaluates(tmp_path: Path, plugin: object) -> None:
    lr = {"kind": "constant", "value": 1e-2}
    sae = ap.train({"out": config("drop_choice", 4, lr=lr)}, source(), tmp_path, settings(25))["out"]
    loaded = ap.load(tmp_path / "out")
    assert type(loaded.allocator).__name__ == "DropChoice"
    assert float(loaded.allocator.log_gain) != 0.0, "its parameter was not trained"
    for name, value in sae.allocator.state_dict().items():
        assert torch.equal(loaded.allocator.state_dict()[name], value)
    found = ap.evaluate(loaded, source())
    assert found["l0"] == pytest.approx(4, rel=0.02) and found["fvu"] < 1
    logged = records(tmp_path / "out")
    assert logged[-1]["notes"]["gain"] != logged[0]["notes"]["gain"]
    assert logged[0]["l0"] < 3.5 < logged[-1]["l0"]
