"""A run that diverges is set aside: its neighbours end as if it had never been there, before and after a kill."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import apportion as ap
from apportion.errors import RunSetAside, TrainingDiverged
from apportion.training import caveats, trainer
from apportion.training.aside import read_aside

from .training_kit import Stopped, Watched, config, records, saved, settings, source, stop

GOOD = {"a": config("token_choice"), "b": config("mutual_choice", seed=1)}
WILD = config("mutual_choice", lr={"kind": "jump", "at": 0.5, "start": 3e-3, "end": 1e30})
RUNS = {"a": GOOD["a"], "wild": WILD, "b": GOOD["b"]}
N_STEPS = 16


def train(out: Path, runs: dict[str, Any] = RUNS, stop_at: int | None = None, every: float = 1e9) -> Any:
    """A training whose middle run diverges after eight steps."""
    rows = source() if stop_at is None else Watched(stop_at, stop)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        saes = ap.train(runs, rows, out, settings(N_STEPS), checkpoint_seconds=every)
    return saes, [str(one.message) for one in seen if one.category is RunSetAside]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The others, trained without it."""
    out = tmp_path_factory.mktemp("aside") / "alone"
    train(out, GOOD)
    return out


def assert_as_alone(out: Path, alone: Path) -> None:
    for name in GOOD:
        assert records(out / name) == records(alone / name)
        assert saved(out / name) == saved(alone / name)


def test_the_others_end_in_the_bits_of_being_alone(tmp_path: Path, alone: Path) -> None:
    saes, (told,) = train(tmp_path)
    assert list(saes) == ["a", "b"] and not (tmp_path / "wild" / "sae.json").exists()
    assert told.startswith("run 'wild' was set aside: loss 'reconstruction' is ")
    assert "no earlier good state of it was saved" in told and "lower the learning rate" in told
    assert_as_alone(tmp_path, alone)
    assert [record["step"] for record in records(tmp_path / "wild")] == [0, 3, 6], "nothing that is no number"
    again, told_again = train(tmp_path, stop_at=0)
    assert list(again) == ["a", "b"] and told_again == [told]
    less, untold = train(tmp_path, GOOD, stop_at=0)
    assert list(less) == ["a", "b"] and untold == []


def test_its_last_good_state_is_an_sae(tmp_path: Path, alone: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=7, every=0)
    _, (told,) = train(tmp_path)
    aside = read_aside(tmp_path / "wild")
    assert aside is not None and (aside.step, aside.kept) == (9, 7)
    assert f"its state after {aside.kept} steps is in wild/last-good" in told
    sae = ap.load(tmp_path / "wild" / "last-good")
    assert torch.isfinite(sae.W_dec).all() and sae.metadata["training"]["steps"] == aside.kept
    assert caveats(sae, "x")[0].startswith("run 'x' diverged later (") and aside.fault in caveats(sae, "x")[0]
    assert sae.metadata["training"]["l0_train"] is None, "its last tenth never came"
    assert_as_alone(tmp_path, alone)


@pytest.mark.parametrize("checkpoints", ["before", "after"])
def test_a_kill_after_it_was_set_aside(tmp_path: Path, alone: Path, checkpoints: str) -> None:
    """The newest checkpoint holds the run while it was well, or no longer holds it."""
    every = 0.0
    if checkpoints == "before":
        with pytest.raises(Stopped):
            train(tmp_path, stop_at=4, every=0)
        every = 1e9
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=12 - (4 if checkpoints == "before" else 0), every=every)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert (folder / "wild.safetensors").exists() == (checkpoints == "before")
    assert read_aside(tmp_path / "wild") is not None
    with pytest.raises(Stopped):  # without it, and killed again
        train(tmp_path, GOOD, stop_at=2, every=0)
    saes, told = train(tmp_path)
    assert list(saes) == ["a", "b"] and len(told) == 1
    assert_as_alone(tmp_path, alone)


def test_a_run_that_is_well_may_not_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_at=2, every=0)
    with pytest.raises(ap.ApportionError, match="holds a training with other runs"):
        train(tmp_path, GOOD)


def test_where_none_is_left_the_training_is_refused_each_time(tmp_path: Path) -> None:
    wild = {"wild": WILD, "other": config(lr={"kind": "constant", "value": 1e30})}
    for stop_at in (None, 0):
        with pytest.raises(TrainingDiverged, match=r"run 'wild': loss .*; none is left, for 1 more diverged"):
            train(tmp_path, wild, stop_at)


def test_a_rule_that_fails_on_weights_that_are_none_is_set_aside_and_any_other_is_not(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = trainer.train_step, [True]

    def step(run: Any, x: Any, clock: Any, **rest: Any) -> Any:
        if run.config == WILD and clock.step == 4:
            if broken[0]:
                with torch.no_grad():
                    run.sae.W_dec.fill_(float("nan"))
            raise ValueError("an outside rule met what it did not expect")
        return real(run, x, clock, **rest)

    monkeypatch.setattr(trainer, "train_step", step)
    _, (told,) = train(tmp_path / "nan")
    assert "its weights are not finite before step 4" in told
    assert_as_alone(tmp_path / "nan", alone)
    broken[0] = False
    with pytest.raises(ValueError, match="an outside rule"):
        train(tmp_path / "sound")


def test_one_that_cannot_be_calibrated_does_not_keep_the_others(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.finish

    def finish(run: Any, *rest: Any) -> Any:
        if run.config == RUNS["a"]:
            raise ap.errors.NonFiniteActivations("row 3 of the activations is not finite")
        return real(run, *rest)

    monkeypatch.setattr(trainer, "finish", finish)
    saes, (told,) = train(tmp_path, GOOD)
    assert list(saes) == ["b"] and "run 'a' was set aside: it could not be calibrated (row 3" in told
    assert saved(tmp_path / "b") == saved(alone / "b")
    with pytest.raises(ap.errors.NonFiniteActivations):  # all alike, as where the rows are at fault
        train(tmp_path / "one", {"a": GOOD["a"]})
    assert read_aside(tmp_path / "one" / "a") is None


def test_the_note_is_checked(tmp_path: Path) -> None:
    train(tmp_path)
    note = tmp_path / "wild" / "set_aside.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"step": 3}))
    with pytest.raises(ap.errors.InvalidCheckpoint, match="does not match its checksum"):
        train(tmp_path)
