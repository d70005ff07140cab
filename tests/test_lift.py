"""Rules that let everything positive fire meet a k for which that is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.allocators import GatedConfig, MutualChoiceConfig, ReLUConfig
from apportion.sae import SAE

from .conftest import inputs, make_sae

RULES = [ReLUConfig.for_k(6), GatedConfig.for_k(6)]


def source() -> ap.TensorSource:
    return ap.TensorSource(inputs(6000))


def sparser(rule) -> SAE:
    """With fewer positive affinities than 6 per token, and magnitudes that are not the gate."""
    sae = make_sae(rule).requires_grad_(False)
    sae.encoder.bias -= 4
    for name, parameter in sae.allocator.named_parameters():
        parameter += 0.3 if name == "r" else sae.encoder.bias + 2.5
    return sae


def spent(sae: SAE) -> float:
    return float(sae.encode(inputs(2000)).counts().double().mean())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_k_is_met_where_too_little_is_positive_by_one_rise_of_all_biases(rule, tmp_path: Path):
    sae = sparser(rule)
    assert spent(sae.freeze()) < 5
    fitted = ap.calibrate(sae, source())
    calibration = fitted.metadata["calibration"]
    assert calibration["l0"] == pytest.approx(6, rel=1e-3)
    assert spent(fitted) == pytest.approx(6, rel=0.05)
    lift = calibration["lift"]
    assert lift > 0
    torch.testing.assert_close(fitted.b_enc - sae.b_enc, torch.full_like(sae.b_enc, lift), rtol=1e-4, atol=1e-5)
    # It only adds features, and no more than that: a little less and they would be too few.
    before, after = (s.encode(inputs(500)).to_dense() > 0 for s in (sae.freeze(), fitted))
    assert bool((after | ~before).all())
    again = ap.calibrate(fitted, source())
    assert "lift" not in again.metadata["calibration"]
    torch.testing.assert_close(again(inputs(50)), fitted(inputs(50)), rtol=1e-3, atol=1e-3)
    ap.save(fitted, tmp_path)
    assert torch.equal(ap.load(tmp_path)(inputs(9)), fitted(inputs(9)))


def test_magnitudes_of_gates_that_were_open_stay():
    sae = sparser(GatedConfig.for_k(6))
    before, after = (s.encode(inputs(500)).to_dense() for s in (sae.freeze(), ap.calibrate(sae, source())))
    open_before = before > 0
    torch.testing.assert_close(after[open_before], before[open_before], rtol=1e-4, atol=1e-4)


def test_values_of_features_that_fired_rise_with_their_biases():
    sae = sparser(ReLUConfig.for_k(6))
    fitted = ap.calibrate(sae, source())
    before, after = (s.encode(inputs(500)).to_dense() for s in (sae.freeze(), fitted))
    rise = (after - before)[before > 0]
    lift = torch.full_like(rise, fitted.metadata["calibration"]["lift"])
    torch.testing.assert_close(rise, lift, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_k_that_a_threshold_gives_is_met_by_it_alone(rule):
    sae = make_sae(rule)
    fitted = ap.calibrate(sae, source())
    assert "lift" not in fitted.metadata["calibration"] and float(fitted.allocator.theta) > 0
    assert torch.equal(fitted.b_enc, sae.b_enc)


def test_what_never_trained_on_more_than_is_positive_is_not_given_more():
    sae = make_sae(MutualChoiceConfig.for_k(6)).requires_grad_(False)
    sae.encoder.bias -= 4
    calibration = ap.calibrate(sae, source()).metadata["calibration"]
    assert calibration["l0"] < 5 and calibration["short"] > 0 and "lift" not in calibration


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_where_nothing_fires_at_all_it_says_so(rule):
    sae = make_sae(rule).requires_grad_(False)
    sae.encoder.bias -= 1e3
    calibration = ap.calibrate(sae, source()).metadata["calibration"]
    assert calibration["l0"] == 0 and calibration["short"] > 0 and "lift" not in calibration
