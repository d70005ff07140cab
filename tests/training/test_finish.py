"""What is said of a finished SAE: the gap between the rule of training and the frozen one."""

from __future__ import annotations

import pytest
import torch

import apportion as ap
from apportion.allocators import FeatureChoiceConfig, MutualChoiceConfig, TokenChoiceConfig
from apportion.clock import Clock
from apportion.training import TrainConfig
from apportion.training.finish import GAP_TOKENS, first_rows, inference_gap

from ..conftest import inputs, make_sae


@pytest.mark.parametrize("sizes", [[10, 10, 10], [3, 40, 2, 1], [64], [7] * 9])
def test_the_first_rows_are_as_many_as_asked_for_or_all_there_are(sizes):
    rows = torch.arange(sum(sizes) * 2.0).reshape(-1, 2)
    for n in (16, 1000):
        asked = []
        blocks = (asked.append(len(part)) or part for part in rows.split(sizes))
        assert torch.equal(first_rows(blocks, n), rows[:n])
        assert sum(asked[:-1]) < n, "no block is asked for that is not needed"
    assert len(first_rows(iter([]), 16)) == 0


@pytest.mark.parametrize("n", [0, 9])
def test_rows_that_fill_no_batch_leave_a_reason(n):
    sae = make_sae(MutualChoiceConfig(k=6))
    gap = inference_gap(sae, sae.freeze(), lambda: iter([inputs(n)]), TrainConfig(batch_size=16), 100)
    assert gap == {"no_gap": f"{n} tokens to calibrate on fill no batch of 16; calibrate on at least 16"}


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
    settings = TrainConfig(n_tokens=1280, batch_size=128)
    gap = inference_gap(sae, frozen, lambda: iter(blocks), settings, 300)
    together, alone = gap["in_batches"], gap["frozen"]
    x = torch.cat(blocks)[:300][torch.randperm(300, generator=torch.Generator().manual_seed(0))][:256]
    spread = (x - x.mean(0)).double().square().sum()
    for got, s in ((together, sae), (alone, frozen)):
        traces = [s.trace(part, Clock(10 + step, 10)) for step, part in enumerate(x.split(128))]
        assert got["tokens"] == 256
        assert got["l0"] == pytest.approx(sum(t.code.nnz for t in traces) / 256)
        error = sum((t.x - t.x_hat).double().square().sum() for t in traces)
        assert got["fvu"] == pytest.approx(float((error / spread).detach()))
    assert together["l0"] != alone["l0"]


def topics(n, seed=0):
    """[n, 24] rows of four topics, which have features of their own, one topic after the other."""
    generator = torch.Generator().manual_seed(seed)
    amount = torch.rand(n, 96, generator=generator) * (torch.rand(n, 96, generator=generator) < 0.2)
    own = torch.arange(96) % 4 == (torch.arange(n) * 4 // n)[:, None]
    return (amount * own) @ make_sae(MutualChoiceConfig(k=6)).W_dec.detach()


@pytest.mark.parametrize("rule", [MutualChoiceConfig(k=6), FeatureChoiceConfig(k=6, quotas="uniform")])
def test_the_gap_is_not_that_of_the_order_of_documents(rule):
    """Training batches are shuffled: a batch of one topic would give its quotas to features of others."""
    sae, x = make_sae(rule), topics(2048)
    with torch.no_grad():
        sae.b_dec.zero_()
    mixed = x[torch.randperm(2048, generator=torch.Generator().manual_seed(5))]
    frozen, _ = sae.calibrate(lambda: iter(x.split(500)), 6.0)
    settings = TrainConfig(n_tokens=1280, batch_size=128)

    def gap(rows):
        return inference_gap(sae, frozen, lambda: iter(rows.split(500)), settings, 4096)

    by_topic, shuffled = gap(x), gap(mixed)
    assert by_topic["frozen"]["fvu"] == pytest.approx(shuffled["frozen"]["fvu"], rel=1e-5)
    assert by_topic["in_batches"]["fvu"] == pytest.approx(shuffled["in_batches"]["fvu"], rel=0.02)


def test_every_batch_of_the_gap_is_a_step_of_its_own():
    """Quotas below one go to some features in one step and to others in the next."""
    sae, fired = make_sae(FeatureChoiceConfig(k=6, quotas="uniform")), torch.zeros(96, dtype=torch.bool)
    with torch.no_grad():
        sae.encoder.bias.fill_(50.0)
    frozen, trace = sae.freeze(), sae.trace

    def watched(x, *args):
        found = trace(x, *args)
        fired[found.code.indices] = True
        return found

    sae.trace = watched
    inference_gap(sae, frozen, lambda: iter([inputs(80)]), TrainConfig(n_tokens=80, batch_size=8), 80)
    assert fired.all()


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
    assert 0 <= calibration["silent"] < 1 and calibration["silent_tokens"] == calibration["tokens"] < GAP_TOKENS


def test_a_silent_feature_is_counted_apart(tmp_path):
    from apportion.training.finish import silent_share

    sae = make_sae(TokenChoiceConfig.for_k(4))
    with torch.no_grad():
        sae.encoder.bias[:12] = -1e6
    assert silent_share(sae, lambda: iter([inputs(200)]), 1000) == pytest.approx(12 / 96)
