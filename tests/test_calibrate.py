"""Fitting an SAE anew, and SAEs of fewer features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.allocators import FeatureChoiceConfig, MutualChoiceConfig, TokenChoiceConfig
from apportion.errors import InvalidInput

from .conftest import inputs, make_sae

RULES = [TokenChoiceConfig.for_k(6), MutualChoiceConfig.for_k(6), FeatureChoiceConfig.for_k(6)]


def source(n: int = 6000, **changes) -> ap.TensorSource:
    return ap.TensorSource(inputs(n), **changes)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_prefix_meets_k_again_evaluates_saves_and_loads(tmp_path: Path, rule):
    whole = ap.calibrate(make_sae(rule), source())
    cut = whole.prefix(40)
    fitted = ap.calibrate(cut, source())
    assert fitted.d_sae == 40 and not fitted.b_dec.requires_grad and not fitted.training
    calibration = fitted.metadata["calibration"]
    assert calibration["l0"] == pytest.approx(6, rel=0.01)
    assert calibration["source"] == source().describe()
    assert fitted.metadata["cut_from"] == {"d_sae": 96, "calibration": whole.metadata["calibration"]}
    assert "calibration" not in cut.metadata and whole.metadata.keys() == {"calibration"}
    measures = ap.evaluate(fitted, source())
    assert measures["l0"] == pytest.approx(6, rel=0.1)  # 600 tokens each to fit and to measure on
    ap.save(fitted, tmp_path)
    again = ap.load(tmp_path)
    assert again.metadata == fitted.metadata and torch.equal(again(inputs(9)), fitted(inputs(9)))


def test_what_training_does_at_its_end_is_what_calibrate_does(tmp_path: Path):
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=24, d_sae=96, allocator=MutualChoiceConfig.for_k(6)))
    settings = ap.TrainConfig(n_tokens=1280, batch_size=128)
    sae = ap.train({"r": run}, source(), tmp_path, settings)["r"]
    again = ap.calibrate(sae, source())
    torch.testing.assert_close(again.allocator.theta, sae.allocator.theta, rtol=1e-6, atol=0)
    assert again.metadata["calibration"]["l0"] == sae.metadata["calibration"]["l0"]
    assert again.metadata["training"] == sae.metadata["training"]


def test_another_k_and_fewer_rows():
    fitted = ap.calibrate(make_sae(MutualChoiceConfig.for_k(6)), source(), 3, limit=500)
    assert fitted.k == 3 and fitted.metadata["calibration"]["tokens"] == 500
    assert fitted.metadata["calibration"]["l0"] == pytest.approx(3, rel=2e-3)


def test_calibrate_refuses_what_it_cannot_fit():
    sae = make_sae(MutualChoiceConfig.for_k(6))
    with pytest.raises(InvalidInput, match="width 12 and the SAE reads width 24"):
        ap.calibrate(sae, ap.TensorSource(torch.randn(2000, 12)))
    with pytest.raises(InvalidInput, match="k = 97 must be above 0"):
        ap.calibrate(sae, source(), 97)


@pytest.mark.parametrize("n", [0, -1, 97, 2.0, True, "8"])
def test_prefixes_out_of_range_are_refused(n):
    with pytest.raises(InvalidInput, match=f"a prefix of {n} features is not within 1 to d_sae = 96") as refusal:
        make_sae(TokenChoiceConfig.for_k(6)).prefix(n)
    assert "\n" not in str(refusal.value)


def test_a_prefix_smaller_than_k_is_refused():
    with pytest.raises(InvalidInput, match=r"5 features have no room for k = 5\.5; keep 6 or more"):
        make_sae(MutualChoiceConfig.for_k(5.5)).prefix(5)


def test_a_prefix_keeps_precision_mode_and_the_first_directions():
    sae = make_sae(MutualChoiceConfig.for_k(6), dtype=torch.float64).requires_grad_(False).eval()
    cut = sae.prefix(10)
    assert cut.dtype == torch.float64 and not cut.training and not cut.W_dec.requires_grad
    assert torch.equal(cut.W_dec, sae.W_dec[:10]) and torch.equal(cut.W_enc, sae.W_enc[:, :10])
    assert torch.equal(cut.b_enc, sae.b_enc[:10]) and torch.equal(cut.b_dec, sae.b_dec)
    assert make_sae(MutualChoiceConfig.for_k(6)).prefix(10).W_dec.requires_grad


def tree() -> ap.TensorSource:
    """Sums of a few of 60 directions of falling frequency."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(60, 24, generator=generator), dim=1)
    often = 0.4 / torch.arange(1, 61) ** 0.5
    weights = torch.rand(12_000, 60, generator=generator)
    weights *= torch.rand(12_000, 60, generator=generator) < often
    return ap.TensorSource(weights @ directions)


def test_a_prefix_of_a_matryoshka_sae_reconstructs_better_than_one_of_a_plain_sae(tmp_path: Path):
    recipes = ("matryoshka", "mutual_choice")
    configs = {f"{name}-{seed}": ap.recipe(name).make(24, 96, 4, seed) for name in recipes for seed in (0, 1)}
    saes = ap.train(configs, tree(), tmp_path, ap.TrainConfig(n_tokens=128 * 250, batch_size=128))

    def fvu(name: str, n: int) -> float:
        """Mean over the seeds, k met again."""
        cut = [ap.calibrate(saes[f"{name}-{seed}"].prefix(n), tree()) for seed in (0, 1)]
        return sum(ap.evaluate(sae, tree())["fvu"] for sae in cut) / 2

    for n in (9, 21, 45):
        assert fvu("matryoshka", n) < 0.85 * fvu("mutual_choice", n)
    assert fvu("matryoshka", 96) < 1.2 * fvu("mutual_choice", 96)  # what it costs the whole
