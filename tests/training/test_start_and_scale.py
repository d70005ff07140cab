"""Where training starts, and what saving takes into the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import apportion as ap
from apportion.activations.scale import input_scale
from apportion.training import Run
from apportion.training.checkpoint import latest_checkpoint, load_checkpoint

from .training_kit import BATCH, config, settings, source

STILL = {"kind": "constant", "value": 0.0}


def first_batch() -> Tensor:
    return next(source().stream(BATCH, 0)).x


def distance(centre: Tensor, x: Tensor) -> Tensor:
    return (x.double() - centre.double()).norm(dim=1).sum()


def test_training_starts_at_the_geometric_median_with_tied_weights(tmp_path: Path) -> None:
    sae = ap.train({"run": config(lr=STILL, seed=4)}, source(), tmp_path, settings(1))["run"]
    x, b_dec = first_batch(), sae.b_dec
    # Naive reference: at the minimum the unit vectors towards the points cancel, and no neighbour is nearer.
    pull = torch.nn.functional.normalize(x.double() - b_dec.double(), dim=1).sum(0)
    assert float(pull.norm()) < 1e-3 * len(x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        nudge = torch.randn(b_dec.shape, generator=generator) * 0.01 * x.std()
        assert distance(b_dec + nudge, x) > distance(b_dec, x)
    assert distance(x.mean(0), x) > distance(b_dec, x)
    assert not torch.allclose(b_dec, x.mean(0), rtol=1e-4)
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T, atol=1e-6, rtol=0)
    assert torch.equal(sae.b_enc, torch.zeros(64))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["token_choice", "mutual_choice"])
def test_folding_the_scale_keeps_features_and_values_to_the_bit(tmp_path: Path, kind: str) -> None:
    saved = ap.train({"run": config(kind)}, source(), tmp_path, settings(15))["run"]
    run = Run(config(kind), torch.zeros(16))
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    scale = load_checkpoint(checkpoint, {"run": run})["scale"]
    assert scale == input_scale(first_batch()) and scale > 4
    blocks = lambda: (batch.x * scale for batch in source().blocks("calibrate"))  # noqa: E731
    unfolded, _ = run.sae.freeze().calibrate(blocks, run.sae.k)
    for batch in source().blocks("evaluate"):
        raw, scaled = saved.encode(batch.x), unfolded.encode(batch.x * scale)
        assert raw.nnz > 0
        assert torch.equal(raw.indices, scaled.indices) and torch.equal(raw.offsets, scaled.offsets)
        assert torch.equal(raw.values * scale, scaled.values)
        assert torch.equal(saved.decode(raw) * scale, unfolded.decode(scaled))


def test_the_loaded_sae_is_the_returned_one(tmp_path: Path) -> None:
    returned = ap.train({"run": config("mutual_choice", 3.5)}, source(), tmp_path, settings(10))["run"]
    loaded, x = ap.load(tmp_path / "run"), first_batch()
    assert loaded.metadata == returned.metadata
    assert loaded.config == returned.config
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(x), returned(x))
