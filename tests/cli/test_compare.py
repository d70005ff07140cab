"""``apportion compare``: trainings in, tables out."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from apportion.compare import from_json

from .conftest import Command
from .test_bad_input import assert_refused


@pytest.fixture
def runs(command: Command, train: list) -> Path:
    assert command(*train, "--k", "4,8").status == 0
    return Path(train[3])


def test_a_training_in_three_formats(command: Command, runs: Path, store: Path) -> None:
    asked = ["compare", runs, "--data", store, "--oracle", "30"]
    done = command(*asked, "--json")
    assert done.status == 0, done.err
    found = from_json(done.out)
    names = ["mutual_choice-k4", "mutual_choice-k8", "token_choice-k4", "token_choice-k8"]
    assert [sae.name for sae in found.saes] == [str(runs / name) for name in names]
    (evaluated, *_) = command("evaluate", runs, "--data", store, "--oracle", "30", "--json").rows
    assert found.saes[0].measures["fvu"] == evaluated["fvu"]
    assert found.saes[0].measures["allocation_efficiency"] == evaluated["allocation_efficiency"]
    assert {one.k for one in found.differences} == {4, 8}
    table = command(*asked)
    assert table.status == 0 and "**FVU at equal measured L0**" in table.out and "| efficiency" in table.out
    lines = list(csv.DictReader(io.StringIO(command(*asked, "--csv").out)))
    assert len(lines) > 40 and {line["table"] for line in lines} == {"points", "levels", "differences"}
    assert lines[0]["method"] == "mutual_choice"


def test_folders_may_overlap_and_the_oracle_be_left_out(command: Command, runs: Path, store: Path) -> None:
    done = command("compare", runs / "token_choice-k4", runs, "--data", store, "--oracle", "0", "--json")
    assert done.status == 0
    found = from_json(done.out)
    assert Path(found.saes[0].name).name == "token_choice-k4" and len(found.saes) == 4
    assert "allocation_efficiency" not in found.saes[0].measures


def test_what_is_left_out_is_said_and_the_status_is_2(command: Command, runs: Path, store: Path) -> None:
    (runs / "mutual_choice-k4" / "sae.safetensors").write_bytes(b"")
    described = runs / "token_choice-k8" / "sae.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"metadata": {}}))
    done = command("compare", runs, "--data", store, "--oracle", "0")
    assert done.status == 2 and done.out.startswith("**On ")
    damaged, edited, *notes = done.err.splitlines()
    assert damaged.startswith(f"apportion: {runs}/mutual_choice-k4 is left out: ")
    assert damaged.endswith("sae.safetensors does not match sae.json; copy the folder again")
    assert edited.startswith(f"apportion: {runs}/token_choice-k8 is left out: ")
    assert notes and all(note.startswith("note: ") for note in notes)


def test_bad_input_is_one_sentence(command: Command, runs: Path, store: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ([tmp_path / "none", "--data", store], r"holds no sae\.json"),
        ([runs, "--data", tmp_path / "none"], r"there is no store"),
        ([runs, "--data", store, "--module", "x"], r"no module 'x'"),
        ([runs, "--data", store, "--json", "--csv"], r"--json and --csv were both given"),
        ([runs, "--data", store, "--limit", "0"], r"none of the 4 SAEs can be compared; .*limit 0"),
        ([runs, "--data", store, "--oracle", "-1"], r"none of the 4 SAEs .* -1 features .* at least 1"),
        ([runs, "--data", store, "--model", str(tmp_path / "m")], r"no model folder"),
    ):
        assert_refused(command("compare", *arguments), words)
