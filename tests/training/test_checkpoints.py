"""What is not whole, not ours or not the same is refused in one sentence that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import apportion as ap
from apportion.errors import InvalidCheckpoint, InvalidConfig, InvalidInput
from apportion.files import seal
from apportion.training.plan import differing_rows

from .training_kit import Stopped, Watched, assert_same_training, config, settings, source, stop

RUNS = {
    "a": config("token_choice"),
    "b": config("mutual_choice"),
    "c": config("token_choice", optimizer="adafactor"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that stopped at its seventh batch, with a checkpoint after the sixth."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(Stopped):
        ap.train(RUNS, Watched(6, stop), out, settings(12), checkpoint_seconds=0)
    return out


@pytest.fixture
def stopped(template: Path, tmp_path: Path) -> Path:
    """A copy of that training."""
    return Path(shutil.copytree(template, tmp_path / "out"))


def folder(out: Path) -> Path:
    (found,) = (out / "checkpoints").iterdir()
    assert found.name == "step-00000006"
    return found


def go_on(out: Path) -> None:
    ap.train(RUNS, source(), out, settings(12))


def test_a_stopped_training_goes_on(stopped: Path, tmp_path: Path) -> None:
    go_on(stopped)
    ap.train(RUNS, source(), tmp_path / "reference", settings(12))
    assert_same_training(stopped, tmp_path / "reference", list(RUNS))


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
    "a bit in the header": lambda file: flip(file, 0.01),
    "a bit in the middle": lambda file: flip(file, 0.5),
    "a bit at the end": lambda file: flip(file, 0.95),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["a.safetensors", "b.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_is_refused_by_name(stopped: Path, name: str, damage: str) -> None:
    file = folder(stopped) / name
    DAMAGE[damage](file)
    with pytest.raises(InvalidCheckpoint) as refusal:
        go_on(stopped)
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (stopped / "a" / "sae.json").exists()


def edit(file: Path, **changes: object) -> None:
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(seal(data, file) if "checksum" in data else data))


@pytest.mark.parametrize("name", ["checkpoints/step-00000006/checkpoint.json", "train.json"])
def test_a_newer_version_is_refused(stopped: Path, name: str) -> None:
    edit(stopped / name, version=2)
    with pytest.raises(InvalidCheckpoint, match=r"has version 2 of apportion-\w+, this release reads up to 1"):
        go_on(stopped)


def test_a_checkpoint_of_another_shape_is_refused(stopped: Path) -> None:
    mine, other = folder(stopped), stopped.parent / "other"
    with pytest.raises(Stopped):
        wide = {name: config("token_choice", d_sae=96) for name in RUNS}
        ap.train(wide, Watched(6, stop), other, settings(12), checkpoint_seconds=0)
    for file in folder(other).iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InvalidCheckpoint, match=r"a\.safetensors does not fit this run: .*expected \(64, 16\)"):
        go_on(stopped)


def test_a_log_that_lost_its_end_is_refused(stopped: Path) -> None:
    (stopped / "a" / "log.jsonl").write_bytes(b"")
    with pytest.raises(InvalidCheckpoint, match=r"log\.jsonl is shorter than its checkpoint says"):
        go_on(stopped)


@pytest.mark.parametrize(
    ("what", "runs", "other", "steps"),
    [
        ("runs", {"a": config("token_choice", 5), "b": RUNS["b"]}, source(), 12),
        ("runs", {"a": RUNS["a"]}, source(), 12),
        ("settings", RUNS, source(), 13),
        ("source", RUNS, ap.TensorSource(next(source().blocks("evaluate")).x, heldout=0.3), 12),
    ],
)
def test_other_arguments_in_the_same_folder_are_refused(
    stopped: Path, what: str, runs: dict, other: ap.Source, steps: int
) -> None:
    before = sorted(path.name for path in stopped.rglob("*"))
    with pytest.raises(InvalidConfig, match=rf"holds a training with other {what}; .*another folder"):
        ap.train(runs, other, stopped, settings(steps))
    assert sorted(path.name for path in stopped.rglob("*")) == before


def test_the_same_arguments_in_another_guise_go_on(stopped: Path) -> None:
    """A list where the file is read as a tuple, as ``model_copy`` lets through."""
    listed = {
        name: run.model_copy(update={"objectives": list(run.objectives), "betas": list(run.betas)})
        for name, run in RUNS.items()
    }
    assert listed != RUNS
    ap.train(listed, source(), stopped, settings(12))
    assert (stopped / "a" / "sae.json").exists()


def test_a_training_of_another_version_is_refused(stopped: Path) -> None:
    plan = json.loads((stopped / "train.json").read_text())
    plan["runs"]["a"]["temperature"] = 3
    (stopped / "train.json").write_text(json.dumps(plan))
    with pytest.raises(InvalidCheckpoint, match=r"train\.json does not match its checksum"):
        go_on(stopped)
    del plan["checksum"]  # as versions without one wrote it
    (stopped / "train.json").write_text(json.dumps(plan))
    with pytest.raises(InvalidConfig, match=r"not written by this version \(.*temperature.*another folder"):
        go_on(stopped)


def test_rows_differ_by_what_is_not_said_too() -> None:
    one = {"rows": 3, "path": "here", "last_only": None}
    assert differing_rows(one, {"rows": 3, "path": "there", "last_only": None}) == []
    assert differing_rows(one, {"rows": 4}) == ["last_only", "rows"]


def test_a_training_of_an_older_version_goes_on_with_the_defaults_of_what_is_new(stopped: Path) -> None:
    plan = json.loads((stopped / "train.json").read_text())
    del plan["checksum"]
    for run in (plan["runs"]["a"], plan["runs"]["b"]):
        assert run.pop("encoder") == {"way": "whole", "chunk": None}
        assert run.pop("optimizer") == "adam"
    del plan["settings"]["seed"]  # 0, the default
    (stopped / "train.json").write_text(json.dumps(plan))
    go_on(stopped)
    assert (stopped / "a" / "sae.json").exists()


def test_unknown_keys_of_a_run_are_refused() -> None:
    data = RUNS["a"].model_dump(mode="json") | {"learning_rate": 1}
    with pytest.raises(InvalidConfig, match=r"unknown key 'learning_rate' \(known keys: .*lr.*\)"):
        ap.RunConfig.parse(data, "here")


def test_names_that_are_no_folder_and_other_widths_are_refused(tmp_path: Path) -> None:
    for name in ("", "../up", "a/b", "checkpoints", ".hidden"):
        with pytest.raises(InvalidConfig, match="is no folder name"):
            ap.train({name: RUNS["a"]}, source(), tmp_path, settings(1))
    with pytest.raises(InvalidInput, match="d_in = 16 but the activations are 24 wide"):
        ap.train(RUNS, source(d_in=24), tmp_path, settings(1))
    assert list(tmp_path.iterdir()) == []
