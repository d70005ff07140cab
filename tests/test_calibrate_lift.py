"""Rules that let everything positive fire meet a k for which that is a few per cent too little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import apportion as ap
from apportion.allocators import GatedConfig, MutualChoiceConfig, ReLUConfig
from apportion.calibrate import fit
from apportion.sae import SAE
from apportion.training import Run
from apportion.training.finish import finish

from .conftest import inputs, make_sae

RULES = [ReLUConfig.for_k(6), GatedConfig.for_k(6)]


def source() -> ap.TensorSource:
    return ap.TensorSource(inputs(6000))


def sparse(rule, dtype: torch.dtype = torch.float32) -> tuple[SAE, float]:
    """With few positive affinities, magnitudes that are not the gate, and how many features fire per token."""
    sae = make_sae(rule, dtype=dtype).requires_grad_(False)
    sae.encoder.bias -= 3
    for name, parameter in sae.allocator.named_parameters():
        parameter += 0.3 if name == "r" else sae.encoder.bias + 2.5
    return sae, spent(sae.freeze())


def spent(sae: SAE) -> float:
    batches = source().blocks("calibrate")
    counts = torch.cat([sae.encode(batch.x).counts() for batch in batches])
    return float(counts.double().mean())


def codes(sae: SAE) -> Tensor:
    return sae.encode(inputs(500)).to_dense()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_k_is_met_by_one_rise_of_all_biases(rule, dtype: torch.dtype, tmp_path: Path):
    sae, l0 = sparse(rule, dtype)
    k = 1.06 * l0
    fitted = ap.calibrate(sae, source(), k)
    calibration = fitted.metadata["calibration"]
    assert calibration["l0"] == pytest.approx(k, rel=1e-3) and spent(fitted) == pytest.approx(k, rel=1e-3)
    rise = fitted.b_enc - sae.b_enc
    torch.testing.assert_close(rise, torch.full_like(rise, calibration["lift"]), rtol=1e-3, atol=1e-6)
    assert calibration["lift"] > 0
    before, after = codes(sae.freeze()) > 0, codes(fitted) > 0
    assert bool((after | ~before).all()), "it only adds features"
    ap.save(fitted, tmp_path)
    assert torch.equal(ap.load(tmp_path)(inputs(9)), fitted(inputs(9)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("share", [1.06, 1.0, 0.7])
def test_calibrating_again_is_calibrating_once(rule, share: float):
    sae, l0 = sparse(rule)
    raised = ap.calibrate(sae, source(), 1.09 * l0)
    again, once = ap.calibrate(raised, source(), share * l0), ap.calibrate(sae, source(), share * l0)
    torch.testing.assert_close(again.b_enc, once.b_enc, rtol=1e-5, atol=1e-5)
    assert again.metadata["calibration"]["l0"] == pytest.approx(once.metadata["calibration"]["l0"], rel=1e-3)
    assert ("lift" in again.metadata["calibration"]) == (share > 1)


def test_a_prefix_forgets_what_the_whole_was_raised_by():
    sae, l0 = sparse(ReLUConfig.for_k(1))
    whole = ap.calibrate(sae, source(), 1.06 * l0)
    cut, plain = whole.prefix(48), sae.freeze().prefix(48)
    k = 0.8 * spent(plain)
    fitted, want = ap.calibrate(cut, source(), k), ap.calibrate(plain, source(), k)
    torch.testing.assert_close(fitted.b_enc, want.b_enc, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_training_saves_the_lift_of_the_sae_that_it_saves(rule):
    """Which takes raw activations, and is fitted to scaled ones."""
    scale = 8.0
    sae, l0 = sparse(rule)
    config = ap.RunConfig(sae=sae.config.model_copy(update={"allocator": type(rule).for_k(1.06 * l0)}))
    run = Run(config, sae.b_dec)
    run.sae.load_state_dict(sae.state_dict())
    rows = ap.TensorSource(inputs(6000) / scale)
    saved = finish(run, rows, scale, ap.TrainConfig(n_tokens=1280, batch_size=128), {})
    lift = saved.metadata["calibration"]["lift"]
    assert saved.metadata["calibration"]["l0"] == pytest.approx(1.06 * l0, rel=1e-3)
    torch.testing.assert_close(
        saved.b_enc - sae.b_enc / scale, torch.full_like(saved.b_enc, lift), rtol=1e-3, atol=1e-6
    )
    below, plain = ap.calibrate(saved, rows, 0.8 * l0), ap.calibrate(sae.freeze().fold(scale), rows, 0.8 * l0)
    torch.testing.assert_close(below.b_enc, plain.b_enc, rtol=1e-5, atol=1e-6)


def test_magnitudes_of_gates_that_were_open_stay():
    sae, l0 = sparse(GatedConfig.for_k(6))
    before, after = codes(sae.freeze()), codes(ap.calibrate(sae, source(), 1.06 * l0))
    torch.testing.assert_close(after[before > 0], before[before > 0], rtol=1e-4, atol=1e-4)


def test_values_of_features_that_fired_rise_with_their_biases():
    sae, l0 = sparse(ReLUConfig.for_k(6))
    fitted = ap.calibrate(sae, source(), 1.06 * l0)
    before, after = codes(sae.freeze()), codes(fitted)
    rise = (after - before)[before > 0]
    lift = torch.full_like(rise, fitted.metadata["calibration"]["lift"])
    torch.testing.assert_close(rise, lift, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_blocks_may_be_empty_or_silent(rule):
    sae, l0 = sparse(rule)
    x = torch.cat([batch.x for batch in source().blocks("calibrate")])

    def blocks() -> Iterator[Tensor]:
        yield from (x[:0], x[:200], sae.b_dec.repeat(3, 1), x[200:])

    _, calibration = fit(sae, blocks, 1.05 * l0)
    assert calibration.lift > 0 and calibration.l0 == pytest.approx(1.05 * l0, rel=1e-3)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_k_that_a_threshold_gives_is_met_by_it_alone(rule):
    sae, l0 = sparse(rule)
    fitted = ap.calibrate(sae, source(), 0.9 * l0)
    assert "lift" not in fitted.metadata["calibration"] and float(fitted.allocator.theta) > 0
    assert torch.equal(fitted.b_enc, sae.b_enc)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("share", [1.2, 4])
def test_a_k_that_it_did_not_learn_stays_missed(rule, share: float):
    """Raised so far, features that mean nothing would fire everywhere."""
    sae, l0 = sparse(rule)
    calibration = ap.calibrate(sae, source(), share * l0).metadata["calibration"]
    assert calibration["l0"] == pytest.approx(l0, rel=1e-3)
    assert calibration["short"] > 0 and "lift" not in calibration


def test_what_never_trained_on_more_than_is_positive_is_not_given_more():
    _, positive = sparse(ReLUConfig.for_k(6))
    sae, _ = sparse(MutualChoiceConfig.for_k(6))
    calibration = ap.calibrate(sae, source(), 1.05 * positive).metadata["calibration"]
    assert calibration["l0"] == pytest.approx(positive, rel=1e-3)
    assert calibration["short"] > 0 and "lift" not in calibration


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_where_nothing_fires_at_all_it_says_so(rule):
    sae = make_sae(rule).requires_grad_(False)
    sae.encoder.bias -= 1e3
    calibration = ap.calibrate(sae, source()).metadata["calibration"]
    assert calibration["l0"] == 0 and calibration["short"] > 0 and "lift" not in calibration
