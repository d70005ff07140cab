"""A training killed at any moment goes on to the same bits as one that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .kill_server import N_STEPS, RUNS
from .training_kit import assert_same_training, checkpoint, records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict]]:
    """(reference, the training that was killed again and again, attempts)."""
    folder = tmp_path_factory.mktemp("resume")
    reference, out = folder / "reference", folder / "killed"
    command = [sys.executable, "-m", "tests.training.kill_server", str(reference), str(out), "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return reference, out, [json.loads(line) for line in done.stdout.splitlines()]


def test_it_was_killed_at_twenty_moments_and_around_every_kind_of_write(killed) -> None:
    _, _, attempts = killed
    struck = [attempt for attempt in attempts if attempt["killed"]]
    assert len(struck) >= 20
    moments = {(a.get("name"), a.get("when")) for a in struck}
    assert {("rename", "before"), ("rename", "after"), ("rmtree", "midway"), ("write", "midway")} <= moments
    assert [a["killed"] for a in attempts[-5:]] == [True] * 4 + [False]


def test_resume_is_bit_equal(killed) -> None:
    reference, out, _ = killed
    assert_same_training(out, reference, list(RUNS))


def test_what_is_compared_is_all_that_a_step_depends_on(killed) -> None:
    reference, _, _ = killed
    state, tensors = checkpoint(reference)
    assert state["step"] == N_STEPS and state["scale"] != 1.0
    assert state["stream"]["epoch"] >= 2
    for run in RUNS:
        names = {name.removeprefix(f"{run}/") for name in tensors if name.startswith(f"{run}/")}
        parts = ("sae.encoder.weight", "sae.W_dec", "firing.age", "firing.density", "rng")
        assert {*parts, "adam.W_dec.exp_avg", "adam.W_dec.exp_avg_sq", "adam.encoder.bias.step"} <= names
        assert any("aux_k" in record["loss"] for record in records(reference / run))
    assert "mutual_choice/sae.allocator.theta" in tensors
    rng = {run: tensors[f"{run}/rng"].tolist() for run in RUNS}
    assert rng["drop_choice"] != rng["token_choice"], "no run drew random numbers, so none could go wrong"


def test_nothing_half_written_is_left(killed) -> None:
    _, out, _ = killed
    assert [path for path in out.rglob("*") if path.name.startswith(".tmp-")] == []
