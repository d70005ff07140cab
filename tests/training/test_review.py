"""Two processes, divergence between log records, and losses that share a name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.errors import InvalidConfig, StorageFailure, TrainingDiverged
from apportion.files import locked
from apportion.objectives import ReconstructionConfig
from apportion.schedules import Linear

HOLD = """
import sys, time
from pathlib import Path
from apportion.files import locked
with locked(Path(sys.argv[1]), "training in"):
    print("held", flush=True)
    time.sleep(60)
"""


def source() -> ap.TensorSource:
    return ap.TensorSource(torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)))


def config(**changes: object) -> ap.RunConfig:
    return ap.recipe("token_choice").make(8, 32, 2, 0).model_copy(update=changes)


def test_a_second_process_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    settings = ap.TrainConfig(n_tokens=640, batch_size=64)
    with pytest.raises(StorageFailure, match="another process is training in"):
        ap.train({"a": config()}, source(), tmp_path, settings)
    holder.kill()
    holder.wait()
    assert ap.train({"a": config()}, source(), tmp_path, settings)
    with locked(tmp_path, "looking at"):
        pass


def test_a_diverged_run_leaves_its_last_good_checkpoint(tmp_path: Path) -> None:
    # The rate explodes in the middle, far from any log record.
    explode = Linear(start=1e-3, end=1e38, begin=0.5, until=0.51)
    settings = ap.TrainConfig(n_tokens=64 * 100, batch_size=64, log_every=90)
    with pytest.raises(TrainingDiverged, match="not finite"):
        ap.train({"a": config(lr=explode)}, source(), tmp_path, settings, checkpoint_seconds=0)
    (kept,) = (tmp_path / "checkpoints").glob("step-*")
    assert 50 <= int(kept.name.removeprefix("step-")) < 60
    assert not (tmp_path / "a" / "sae.json").exists()


def test_a_gradient_without_a_norm_is_a_divergence(tmp_path: Path) -> None:
    huge = config(lr=Linear(start=1e12, end=1e12 + 1))
    with pytest.raises(TrainingDiverged):
        ap.train({"a": huge}, source(), tmp_path, ap.TrainConfig(n_tokens=64 * 40, batch_size=64))
    assert not (tmp_path / "a" / "sae.json").exists()


def test_two_losses_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = config(objectives=(ReconstructionConfig(), ReconstructionConfig(weight=9)))
    with pytest.raises(InvalidConfig, match="two losses are called 'reconstruction'"):
        ap.train({"a": twice}, source(), tmp_path, ap.TrainConfig(n_tokens=640, batch_size=64))


def test_other_rows_of_the_same_shape_are_another_source(tmp_path: Path) -> None:
    settings = ap.TrainConfig(n_tokens=640, batch_size=64)
    ap.train({"a": config()}, source(), tmp_path, settings)
    other = ap.TensorSource(torch.randn(2000, 8, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(InvalidConfig, match="other source"):
        ap.train({"a": config()}, other, tmp_path, settings)


def test_rules_draw_from_another_stream_than_the_directions() -> None:
    run = ap.training.Run(config(), torch.zeros(8))
    torch.set_rng_state(run.rng)
    drawn = torch.nn.functional.normalize(torch.randn(32, 8), dim=1)
    assert (drawn * run.sae.W_dec).sum(1).abs().mean() < 0.6
