"""A rule in a file of the user's trains and evaluates through the command line, with no edit in the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import apportion as ap
from apportion.errors import UnknownName

from .conftest import Command

RULE = Path(__file__).parents[1] / "training" / "drop_choice.py"


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """The rule under the name of a module of Python's own; forgotten afterwards."""
    path = tmp_path / "random.py"
    path.write_text(RULE.read_text())
    yield path
    ap.AllocatorConfig.members.pop("drop_choice", None)


def test_an_outside_rule_does_the_whole_job(
    command: Command, train: list, store: Path, plugin: Path, tmp_path: Path
) -> None:
    import random

    options = ["--plugin", plugin, "--recipe", "drop_choice,token_choice", "--json"]
    settings = ["--set", "drop_choice.allocator.drop=0.5", "--set", "drop_choice.lr.peak=0.01"]
    done = command(*train, *options, *settings)
    assert done.status == 0, done.err
    assert sys.modules["random"] is random, "the plug-in replaced a module of Python's"
    assert [row["run"] for row in done.rows] == ["drop_choice-k4", "token_choice-k4"]
    sae = ap.load(tmp_path / "runs" / "drop_choice-k4")
    assert sae.config.allocator.drop == 0.5
    assert float(sae.allocator.log_gain) != 0.0 and float(sae.allocator.level) > 0
    measured = command("evaluate", tmp_path / "runs", "--data", store, "--plugin", plugin, "--json").rows
    assert [row["l0"] for row in measured] == [pytest.approx(4, rel=0.02)] * 2

    ap.AllocatorConfig.members.pop("drop_choice")
    with pytest.raises(UnknownName, match=r"kind 'drop_choice'; nearest: .*once the module .* is imported"):
        ap.load(tmp_path / "runs" / "drop_choice-k4")
    refused = command("evaluate", tmp_path / "runs", "--data", store)
    assert refused.status == 2 and "unknown AllocatorConfig kind 'drop_choice'" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_a_fresh_process_knows_it_only_with_the_plugin(
    command: Command, train: list, store: Path, plugin: Path, tmp_path: Path
) -> None:
    assert command(*train, "--plugin", plugin, "--recipe", "drop_choice").status == 0
    run = [sys.executable, "-m", "apportion", "evaluate", str(tmp_path / "runs"), "--data", str(store), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    without = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert without.returncode == 2 and without.stdout == ""
    assert (
        len(without.stderr.splitlines()) == 1 and "unknown AllocatorConfig kind 'drop_choice'" in without.stderr
    )
    given = subprocess.run([*run, "--plugin", str(plugin)], capture_output=True, text=True, env=environment)
    assert given.returncode == 0, given.stderr
    assert json.loads(given.stdout)[0]["l0"] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 +", "SyntaxError"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        (RULE.read_text().replace('"drop_choice"', '"token_choice"'), "kind 'token_choice' is taken"),
    ],
)
def test_a_plugin_that_fails_is_named_in_one_sentence(
    command: Command, train: list, tmp_path: Path, code: str, words: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    done = command(*train, "--plugin", path)
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert str(path) in done.err and words in done.err
    assert "apportion_plugin_broken" not in sys.modules
