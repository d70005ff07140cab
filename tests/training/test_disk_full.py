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


# With 16 KiB to spare the log still fits, the checkpoint does not; with none even the log does not.
@pytest.mark.parametrize("spare", [16 << 10, 0])
def test_a_full_disk_stops_training_and_costs_nothing(small_disk: Path, tmp_path: Path, spare: int) -> None:
    out = small_disk / "out"
    chatty = settings(12, log_every=1)
    with pytest.raises(StorageFailure, match=r"cannot write .*: No space left on device; free some space"):
        ap.train(RUNS, Watched(6, lambda: fill(small_disk, spare)), out, chatty, checkpoint_seconds=0)
    (kept,) = (out / "checkpoints").iterdir()
    state = load_checkpoint(kept, {name: Run(run, torch.zeros(16)) for name, run in RUNS.items()})
    assert state["step"] >= 6
    (small_disk / "filler").unlink()
    ap.train(RUNS, source(), out, chatty)
    ap.train(RUNS, source(), tmp_path / "reference", chatty)
    assert_same_training(out, tmp_path / "reference", list(RUNS))
