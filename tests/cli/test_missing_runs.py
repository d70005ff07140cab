"""Runs that have no SAE are named by every command that reads a training, and marked ones explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Command
from .test_bad_input import assert_refused


@pytest.fixture
def runs(command: Command, train: list) -> Path:
    """Four of six runs were finished."""
    assert command(*train, "--recipe", "topk,mutual_choice,relu_l1", "--k", "4,8").status == 0
    out = Path(train[3])
    for name in ("topk-k4", "mutual_choice-k8"):
        (out / name / "sae.json").unlink()
    return out


def test_runs_that_are_not_finished_are_named_and_strict_refuses(
    command: Command, runs: Path, store: Path, tmp_path: Path
) -> None:
    told = f"2 of 6 runs in {runs} are not finished: topk-k4, mutual_choice-k8"
    page = tmp_path / "page.html"
    for name, more in (
        ("evaluate", ["--json"]),
        ("analyse", ["--neighbours", "0", "--json"]),
        ("compare", ["--oracle", "0", "--json"]),
        ("report", ["--oracle", "0", "--features", "5", "-o", page]),
    ):
        asked = [name, runs, "--data", store, *more]
        done = command(*asked)
        assert done.status == 0 and done.err.count(told) == 1, done.err
        if name == "compare":
            assert done.rows["notes"][0] == told  # type: ignore[call-overload]
        assert_refused(command(*asked, "--strict"), f"{told}; train them or leave --strict out")
    assert f"<li>{told}</li>" in page.read_text()
    one = command("evaluate", runs / "topk-k8", "--data", store, "--strict", "--json")
    assert one.status == 0 and one.err == "", "it is all there"
    (runs / "train.json").write_text("{")
    assert "whether runs are missing" in command("evaluate", runs, "--data", store).err
    for folder in runs.glob("*/sae.json"):
        folder.unlink()
    assert_refused(command("evaluate", runs, "--data", store), "whether runs are missing")


def test_one_that_diverged_costs_its_neighbours_nothing_and_the_status_says_so(
    command: Command, train: list, store: Path
) -> None:
    wild = [*train, "--recipe", "topk,soft_sae", "--set", "soft_sae.lr.peak=1e30", "--json"]
    done = command(*wild)
    assert done.status == 1 and [row["run"] for row in done.rows] == ["topk-k4"]
    assert "run 'soft_sae-k4' was set aside: " in done.err
    assert (command(*wild).status, command(*train, "--recipe", "topk", "--json").status) == (1, 0)
    runs = Path(train[3])
    told = f"1 of 2 runs in {runs} was set aside: soft_sae-k4"
    measured = command("evaluate", runs, "--data", store)
    assert measured.status == 0 and told in measured.err
    assert_refused(command("evaluate", runs, "--data", store, "--strict"), told)


def test_an_sae_that_missed_its_k_is_marked_with_a_sentence_below(
    command: Command, runs: Path, store: Path
) -> None:
    for asked in (["evaluate"], ["analyse", "--neighbours", "0"]):
        table = command(asked[0], runs, "--data", store, *asked[1:]).out.splitlines()
        rows = [line for line in table if line.startswith("relu_l1-k4")]
        assert rows and all(line.split()[1] == "†" for line in rows)
        assert not any("†" in line for line in table if line.startswith("topk-k8"))
        assert sum(line.startswith("† run 'relu_l1-k4' ended its training at L0 = ") for line in table) == 1
    (row,) = command("evaluate", runs / "relu_l1-k4", "--data", store, "--json").rows
    assert row["caveats"][0].startswith("run 'relu_l1-k4' ended its training at L0 = ")
    text = command("compare", runs, "--data", store, "--oracle", "0").out
    assert "| relu_l1 † " in text and "\n† run '" in text
