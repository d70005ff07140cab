"""Fitting an SAE anew, and SAEs of fewer features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.allocators import FeatureChoiceConfig, MutualChoiceConfig, TokenChoiceConfig
from apportion.errors import BudgetMissed, InvalidInput

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
    assert calibration["l0"] == pytest.approx(6, rel=0.02)
    if rule.kind != "feature_choice":
        assert calibration["l0_fitted"] == pytest.approx(6, rel=1e-3)
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
    assert fitted.metadata["calibration"]["l0_fitted"] == pytest.approx(3, rel=2e-3)


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


def bursts(seed: int) -> ap.TensorSource:
    """Documents of 200 rows, each with a tenth of the directions: what fires in one does not in another."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(300, 24, generator=generator), dim=1)
    document = torch.arange(60_000) // 200
    own = torch.rand(300, 300, generator=generator) < 0.1
    active = own[document] & (torch.rand(60_000, 300, generator=generator) < 0.1)
    x = (active * torch.rand(60_000, 300, generator=generator)) @ directions
    return ap.TensorSource(x + 0.02 * torch.randn(60_000, 24, generator=generator), document, heldout=0.5)


def test_k_is_met_on_text_that_was_not_fitted_on_or_it_says_that_it_cannot_be_known(tmp_path: Path):
    """From eight documents 6.0 was stated, without a word, and 7.9 and 8.2 spent on others."""
    rule = FeatureChoiceConfig(k=6, quotas="uniform")
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=24, d_sae=1024, allocator=rule))
    settings = ap.TrainConfig(n_tokens=20 * 256, batch_size=256, calibrate_tokens=1600)
    for seed in (100, 102):
        with pytest.warns(
            BudgetMissed, match=r"spends 6\.1.* ± .* not fitted on, and k = 6 .* from 1,600 tokens"
        ):
            sae = ap.train({"r": run}, bursts(seed), tmp_path / str(seed), settings)["r"]
        calibration = sae.metadata["calibration"]
        assert calibration["folds"] == 8 and calibration["l0_fitted"] < 5.5
        assert abs(calibration["l0"] - 6) < 0.02 * 6 < calibration["l0_se"]
        elsewhere = ap.evaluate(sae, bursts(seed))
        assert abs(elsewhere["l0"] - 6) < calibration["l0_se"], "it is as far off as it says"


def test_folds_that_are_left_out_have_no_say_in_what_is_stated():
    """All folds but one are made larger, and it is counted under the higher threshold that is theirs."""
    sae = make_sae(MutualChoiceConfig.for_k(6))
    x = inputs(8 * 64)
    x[64:] *= 1.5  # rows 0 to 63 are the first of eight folds
    fitted, calibration = sae.calibrate(lambda: iter([x]), 6)
    alone, _ = sae.calibrate(lambda: iter([x[64:]]), 6)
    assert calibration.unseen.folds == 8 and calibration.l0 == pytest.approx(6, abs=2e-3)
    held = [x[64 * i : 64 * (i + 1)] for i in range(8)]
    others = [torch.cat(held[:i] + held[i + 1 :]) for i in range(8)]
    spent = [
        sae.calibrate(lambda rows=rows: iter([rows]), 6)[0].encode(h).nnz
        for h, rows in zip(held, others, strict=True)
    ]
    assert float(alone.allocator.theta) > float(fitted.allocator.theta)
    assert calibration.unseen.l0 == pytest.approx(sum(spent) / len(x), rel=2e-3)
