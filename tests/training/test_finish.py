"""What is said of a finished SAE: the gap between the rule of training and the frozen one."""

from __future__ import annotations

import pytest
import torch

import apportion as ap
from apportion.allocators import FeatureChoiceConfig, MutualChoiceConfig, TokenChoiceConfig
from apportion.training.finish import batches_of, inference_gap

from ..conftest import inputs, make_sae


@pytest.mark.parametrize("sizes", [[10, 10, 10], [3, 40, 2, 1], [64], [7] * 9])
def test_batches_hold_the_same_rows_in_the_same_order(sizes):
    rows = torch.arange(sum(sizes) * 2.0).reshape(-1, 2)
    batches = list(batches_of(iter(rows.split(sizes)), 16))
    assert all(len(batch) == 16 for batch in batches)
    assert torch.equal(torch.cat(batches), rows[: len(rows) // 16 * 16])


def test_rows_that_fill_no_batch_are_no_batch():
    assert list(batches_of(iter([torch.zeros(5, 2), torch.zeros(4, 2)]), 16)) == []
    sae = make_sae(MutualChoiceConfig(k=6))
    assert inference_gap(sae, sae.freeze(), lambda: iter([inputs(9)]), 16, 100) == {}


def test_a_rule_that_needs_its_whole_batch_can_be_finished(tmp_path):
    """Blocks of held-out rows are smaller than training batches."""
    source = ap.TensorSource(torch.randn(12_000, 8, generator=torch.Generator().manual_seed(0)))
    rule = FeatureChoiceConfig(k=2, quotas="uniform", warmup=0, at_least=1)
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=8, d_sae=3000, allocator=rule))
    ap.train({"r": run}, source, tmp_path, ap.TrainConfig(n_tokens=4000, batch_size=2000))


@pytest.mark.parametrize("rule", [MutualChoiceConfig(k=6), FeatureChoiceConfig(k=6, quotas="uniform")])
def test_the_gap_is_what_each_rule_gives_on_the_same_rows(rule):
    sae = make_sae(rule)
    blocks = [inputs(100, seed=s) for s in range(5)]
    frozen, _ = sae.calibrate(lambda: iter(blocks), 6.0)
    gap = inference_gap(sae, frozen, lambda: iter(blocks), 128, 300)
    together, alone = gap["in_batches"], gap["frozen"]
    x = torch.cat(blocks)[:256]
    spread = (x - x.mean(0)).double().square().sum()
    for got, s in ((together, sae), (alone, frozen)):
        traces = [s.trace(part) for part in x.split(128)]
        assert got["tokens"] == 256
        assert got["l0"] == pytest.approx(sum(t.code.nnz for t in traces) / 256)
        error = sum((t.x - t.x_hat).double().square().sum() for t in traces)
        assert got["fvu"] == pytest.approx(float((error / spread).detach()))
    assert together["l0"] != alone["l0"]


@pytest.mark.parametrize(
    ("rule", "coupled"),
    [
        (MutualChoiceConfig(k=4), True),
        (FeatureChoiceConfig(k=4, quotas="uniform"), True),
        (TokenChoiceConfig.for_k(4), False),
    ],
)
def test_only_rules_that_couple_rows_have_a_gap_in_their_metadata(rule, coupled, tmp_path):
    source = ap.TensorSource(torch.randn(4000, 12, generator=torch.Generator().manual_seed(0)))
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=12, d_sae=48, allocator=rule))
    saes = ap.train({"r": run}, source, tmp_path, ap.TrainConfig(n_tokens=640, batch_size=64))
    calibration = saes["r"].metadata["calibration"]
    assert ("in_batches" in calibration) == ("frozen" in calibration) == coupled
    if coupled:
        assert calibration["in_batches"]["l0"] == pytest.approx(4.0, rel=0.1)
        assert calibration["frozen"]["fvu"] > 0
    assert 0 <= calibration["silent"] < 1


def test_a_silent_feature_is_counted_apart(tmp_path):
    from apportion.training.finish import silent_share

    sae = make_sae(TokenChoiceConfig.for_k(4))
    with torch.no_grad():
        sae.encoder.bias[:12] = -1e6
    assert silent_share(sae, lambda: iter([inputs(200)]), 1000) == pytest.approx(12 / 96)
