"""A full disk stops a training without harm."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.errors import StorageFailure
from apportion.training import Run
from apportion.training.checkpoint import load_checkpoint

from .training_kit import Watched, assert_same_training, config, settings, source

RUNS = {"a": config("token_choice"), "b": config("mutual_choice")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, spare: int) -> None:
    """Leave only ``spare`` bytes."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(free.f_bavail * free.f_frsize - spare, 0)))


def test_a_checkpoint_that_does_not_fit_costs_nothing(small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "out"
    with pytest.raises(StorageFailure, match=r"cannot write .*step-00000007.*: No space left.*; free some space"):
        full = Watched(6, lambda: fill(small_disk, 16 << 10))  # the log still fits
        ap.train(RUNS, full, out, settings(12), checkpoint_seconds=0)
    (kept,) = (out / "checkpoints").iterdir()
    assert kept.name == "step-00000006"
    assert load_checkpoint(kept, {name: Run(run, torch.zeros(16)) for name, run in RUNS.items()})["step"] == 6
    (small_disk / "filler").unlink()
    ap.train(RUNS, source(), out, settings(12))
    ap.train(RUNS, source(), tmp_path / "reference", settings(12))
    assert_same_training(out, tmp_path / "reference", list(RUNS))


def test_a_log_that_does_not_fit_costs_nothing(small_disk: Path, tmp_path: Path) -> None:
    out, chatty = small_disk / "out", settings(40, log_every=1)
    with pytest.raises(StorageFailure, match=r"cannot write .*log\.jsonl: No space left.*; free some space"):
        ap.train(RUNS, Watched(6, lambda: fill(small_disk, 0)), out, chatty)
    (small_disk / "filler").unlink()
    ap.train(RUNS, source(), out, chatty)
    ap.train(RUNS, source(), tmp_path / "reference", chatty)
    assert_same_training(out, tmp_path / "reference", list(RUNS))
