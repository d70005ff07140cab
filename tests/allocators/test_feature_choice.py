"""Feature Choice: quotas kept, learned from Mutual Choice, and frozen into thresholds that keep densities."""

from __future__ import annotations

import warnings

import pytest
import torch

import apportion as ap
from apportion.affinities import Survey
from apportion.allocators import FeatureChoiceConfig, FeatureThresholdConfig, MutualChoiceConfig
from apportion.allocators.feature_fit import fit
from apportion.clock import END, Clock
from apportion.errors import InvalidConfig, InvalidInput
from apportion.firing import Firing
from apportion.objectives import ReconstructionConfig
from apportion.ops.zipf import fit_zipf, ranks
from apportion.schedules import Constant
from apportion.training import Run, train_step

from ..conftest import inputs, make_sae

LATE = Clock(50, 100)


def positive(sae, x):
    return ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()


def per_feature(code):
    return torch.bincount(code.indices, minlength=code.d_sae)


def test_uniform_quotas_give_every_feature_its_share():
    sae, x = make_sae(FeatureChoiceConfig(k=6, quotas="uniform")), inputs(64)
    with torch.no_grad():
        sae.encoder.bias.add_(3.0)  # enough positive affinities for every quota
    code = sae.trace(x, LATE).code
    assert per_feature(code).tolist() == [4] * 96
    a = positive(sae, x)
    want = torch.zeros_like(a).scatter_(0, a.topk(4, dim=0).indices, a.topk(4, dim=0).values)
    torch.testing.assert_close(code.to_dense(), want)


def test_the_warm_up_is_mutual_choice():
    sae, twin, x = make_sae(FeatureChoiceConfig(k=6)), make_sae(MutualChoiceConfig(k=6)), inputs(64)
    for step in (0, 9):
        assert torch.equal(sae.trace(x, Clock(step, 100)).code.indices, twin.trace(x, END).code.indices)
    assert not torch.equal(sae.trace(x, Clock(10, 100)).code.indices, twin.trace(x, END).code.indices)


def warmed_up(quotas="zipf", steps=40, n=64, **settings):
    sae = make_sae(FeatureChoiceConfig(k=6, quotas=quotas, warmup=0.25, refresh_every=2, **settings))
    with torch.no_grad():
        sae.encoder.bias.copy_(torch.linspace(-2, 2, 96))  # densities that differ
    for step in range(steps):
        trace = sae.trace(inputs(n, seed=step), Clock(step, steps))
        sae.allocator.observe(trace, sae.dictionary(), Firing(96))
    return sae


def test_quotas_follow_the_curve_of_what_mutual_choice_would_do():
    sae = warmed_up()
    density = sae.allocator.mutual.density
    a = torch.cat([positive(sae, inputs(64, seed=s)) for s in range(40)])
    cut = a.flatten().topk(6 * len(a)).values[-1]
    torch.testing.assert_close(density.double(), (a >= cut).double().mean(0), rtol=0.3, atol=0.02)
    quotas = sae.allocator.quotas(640)
    assert quotas.sum() == pytest.approx(6 * 640) and quotas.min() >= 1 and quotas.max() <= 640
    sae.allocator.observe(
        sae.trace(inputs(64), Clock(30, 40)), sae.dictionary(), Firing(96)
    )  # a step that refits
    torch.testing.assert_close(sae.allocator.share, fit_zipf(density).at(ranks(density)))


def test_quotas_that_no_curve_can_be_fitted_to_stay_and_say_so():
    rule = FeatureChoiceConfig(k=2, refresh_every=5).build(d_in=24, d_sae=96)
    rule.mutual.density[:7] = 0.1
    with pytest.warns(UserWarning, match=r"^7 features have fired .* takes 8; quotas stay .* 5 steps"):
        rule._refit()
    assert (rule.share == 1).all()


def test_the_quotas_do_not_confirm_themselves():
    """What is learned depends on the affinities alone, not on what the quotas chose."""
    sae = warmed_up()
    other = warmed_up(quotas="zipf")
    other.allocator.share.copy_(torch.rand(96, dtype=torch.float64))
    trace = [s.trace(inputs(64, seed=99), Clock(20, 40)) for s in (sae, other)]
    assert not torch.equal(trace[0].code.indices, trace[1].code.indices)
    for s, t in zip((sae, other), trace, strict=True):
        s.allocator.observe(t, s.dictionary(), Firing(96))
    assert torch.equal(sae.allocator.mutual.density, other.allocator.mutual.density)
    assert torch.equal(sae.allocator.share, other.allocator.share)


def test_over_steps_every_feature_is_asked():
    sae = warmed_up()
    seen = torch.zeros(96, dtype=torch.int64)
    with torch.no_grad():
        sae.encoder.bias.fill_(50.0)  # everything is positive
    for step in range(40):
        code = sae.trace(inputs(10, seed=step), Clock(500 + step, 1000)).code
        assert code.nnz == 60
        seen += per_feature(code)
    assert (seen > 0).all()


def test_a_batch_too_small_for_each_feature_says_what_would_do():
    sae = make_sae(FeatureChoiceConfig(k=6, at_least=1, quotas="uniform"))
    with pytest.raises(InvalidConfig, match=r"10 tokens has 60 places for 96 features.*at least 16 tokens"):
        sae.trace(inputs(10), LATE)
    assert sae.trace(inputs(16), LATE).code.nnz <= 96


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_a_warm_up_too_short_is_said_before_anything_is_claimed(warmup, tmp_path):
    source = ap.TensorSource(torch.randn(600, 24, generator=torch.Generator().manual_seed(0)))
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=24, d_sae=96, allocator=FeatureChoiceConfig(k=6, warmup=warmup)))
    words = (
        rf"of {16 if warmup else 0} tokens is too short to fit the densities of 96 features; it takes 32 tokens"
    )
    with pytest.raises(InvalidConfig, match=words):
        ap.train({"r": run}, source, tmp_path, ap.TrainConfig(n_tokens=160, batch_size=8))
    assert not (tmp_path / "train.json").exists()


@pytest.mark.parametrize(("n", "share"), [(16, 0), (20, 20), (31, 48)])
def test_a_batch_that_leaves_little_to_the_curve_is_said(n, share):
    words = rf"{n} tokens has {6 * n} places for 96 features.* leaves {share} %.*batches of 32 tokens leave half"
    with pytest.warns(UserWarning, match=words):
        FeatureChoiceConfig(k=6).check(1000, n, 96)


@pytest.mark.parametrize(
    ("n", "settings"),
    [(32, {}), (15, {}), (16, {"at_least": 0}), (16, {"at_least": 1}), (16, {"quotas": "uniform"})],
)
def test_a_curve_that_has_its_room_or_was_not_asked_for_is_not_warned_of(n, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureChoiceConfig(k=6, **settings).check(1000, n, 96)


def one_document(blocks):
    """Of which nothing can be held out, so that the factor is fitted where the thresholds are."""
    return ((x, torch.zeros(len(x), dtype=torch.int64)) for x in blocks)


def test_one_feature_that_is_all_but_silent_does_not_make_all_hand_in_more():
    sae = make_sae(FeatureThresholdConfig(k=6))
    with torch.no_grad():
        sae.encoder.bias.fill_(2.0)
    blocks = [inputs(256, seed=s) for s in range(8)]
    a = torch.cat([positive(sae, x) for x in blocks])[:, 5]
    quota = round(6 / 96 * len(a))
    with torch.no_grad():  # one positive affinity more than its quota, by a hair
        sae.encoder.bias[5] -= a.sort(descending=True).values[quota + 1] - 1e-6
    handed_in = []

    class Counting(type(sae.survey(blocks[0]))):
        def above(self, theta):
            pairs = super().above(theta)
            handed_in.append(len(pairs.rows))
            return pairs

    def affinities(x):
        pre = sae.survey(x)
        pre.__class__ = Counting
        return pre, x

    with torch.no_grad():
        theta = fit(Survey(affinities, lambda: one_document(blocks)), sae.allocator.density.double(), 6.0).theta
    counts = sum(int((positive(sae, x) > theta).sum()) for x in blocks)
    assert counts == pytest.approx(6 * 8 * 256, rel=1e-3)
    assert max(handed_in) < 2 * 6 * 256


def test_frozen_features_keep_their_densities_and_k():
    sae = warmed_up()
    blocks = [inputs(256, seed=500 + s) for s in range(8)]
    fitted, calibration = sae.calibrate(lambda: iter(blocks), 6.0)
    counts = sum(per_feature(fitted.encode(x)) for x in blocks)
    n = sum(map(len, blocks))
    assert int(counts.sum()) == calibration.l0 * n < 6 * n and calibration.unseen.folds == 8
    assert calibration.unseen.l0 == pytest.approx(6, rel=1e-3)
    want = fitted.allocator.density * n
    able = (torch.cat([positive(sae, x) for x in blocks]) > 0).sum(0) > 1.2 * want
    torch.testing.assert_close(counts[able].double(), want[able].double(), rtol=0.25, atol=6.0)


@pytest.mark.parametrize("at_least", [None, 0])
@pytest.mark.parametrize("n", [2, 8, 15, 16, 17, 64])
def test_the_frozen_densities_are_those_of_training(n, at_least):
    """Also in batches that had no place for every feature, which then had no smallest quota either."""
    allocator = make_sae(FeatureChoiceConfig(k=6, at_least=at_least)).allocator
    allocator.share.copy_(1 / torch.arange(3, 99))
    allocator.batch.fill_(n)
    frozen = allocator.freeze().density
    torch.testing.assert_close(frozen, (allocator.quotas(n) / n).float())
    assert frozen.sum() == pytest.approx(6)


def test_a_warm_up_in_small_batches_can_be_frozen_though_each_feature_is_to_get_one():
    allocator = make_sae(FeatureChoiceConfig(k=6, at_least=1)).allocator
    allocator.batch.fill_(8)
    assert allocator.freeze().density.sum() == pytest.approx(6)


@pytest.mark.parametrize("k", [0.5, 6, 6.5])
@pytest.mark.parametrize("at_least", [None, 0, 1])
def test_an_untrained_rule_freezes_into_equal_densities(k, at_least):
    frozen = make_sae(FeatureChoiceConfig(k=k, at_least=at_least)).allocator.freeze()
    torch.testing.assert_close(frozen.density, torch.full((96,), k / 96), rtol=0.04, atol=0)


def test_thresholds_are_exact_quantiles_when_every_feature_can_fill_its_quota():
    sae = make_sae(FeatureThresholdConfig(k=6))
    with torch.no_grad():
        sae.encoder.bias.fill_(30.0)
        density = torch.linspace(0.01, 0.2, 96)
        sae.allocator.density.copy_(density * 6 / density.sum())
    # One block has most of the large ones: what a block hands in must not decide.
    blocks = [inputs(200, seed=s) * (1 + 4 * (s == 3)) for s in range(5)]
    fitted, _ = sae.calibrate(lambda: one_document(blocks), 6.0)
    a = torch.cat([positive(sae, x) for x in blocks])
    quota = sae.allocator.density.double() * 1000
    falling = a.double().sort(dim=0, descending=True).values
    own = torch.stack(
        [falling[q - 1 : q + 1, f].mean() for f, q in enumerate(quota.round().long().tolist())]
    ).log()
    drawn = ((quota * own + (quota * own).sum() / quota.sum()) / (quota + 1)).exp()  # to the scale of all
    factor = fitted.allocator.theta.double() / drawn
    torch.testing.assert_close(factor, factor.mean().expand(96), rtol=1e-5, atol=0)
    assert abs(int((a > fitted.allocator.theta).sum()) - 6000) <= 6


def test_more_than_there_is_takes_everything():
    sae = make_sae(FeatureThresholdConfig(k=90))
    fitted, calibration = sae.calibrate(lambda: iter([inputs(50)]), 90)
    assert calibration.l0 < 90 and calibration.short == 50
    assert fitted.encode(inputs(50)).nnz == int((positive(sae, inputs(50)) > 0).sum())


def test_no_tokens_to_calibrate_on():
    with pytest.raises(InvalidInput, match="no tokens"):
        make_sae(FeatureThresholdConfig(k=3)).calibrate(lambda: iter([]), 3)


def test_only_features_that_cannot_fill_their_quota_are_woken():
    sae, x = make_sae(FeatureChoiceConfig(k=6, quotas="uniform", wake=0.5)), inputs(64)
    with torch.no_grad():
        sae.encoder.bias.add_(3.0)
        second = ((x - sae.b_dec) @ sae.W_enc[:, 1]).topk(3).values
        sae.encoder.bias[:2] = torch.tensor([-100.0, -float(second[1:].mean())])  # two positive affinities
    trace = sae.trace(x, LATE)
    taken = per_feature(trace.code)
    assert taken.tolist() == [0, 2] + [4] * 94
    (loss,) = sae.allocator.terms(trace, sae.dictionary()).values()
    loss.backward()
    want = -0.5 * (1 - taken / 4)
    torch.testing.assert_close(sae.encoder.bias.grad, want)
    others = [p.grad for name, p in sae.named_parameters() if name != "encoder.bias"]
    assert all(grad is None or not grad.any() for grad in others)


def test_nothing_is_woken_without_quotas_or_weight():
    for config, clock in ((FeatureChoiceConfig(k=6, wake=0.1), Clock(5, 100)), (FeatureChoiceConfig(k=6), LATE)):
        sae = make_sae(config)
        assert sae.allocator.terms(sae.trace(inputs(64), clock), sae.dictionary()) == {}


@pytest.mark.parametrize("wake", [0.0, 0.1])
def test_a_silent_feature_comes_back(wake):
    allocator = FeatureChoiceConfig(k=6, quotas="uniform", warmup=0.0, wake=wake)
    config = ap.RunConfig(
        sae=ap.SAEConfig(d_in=24, d_sae=96, allocator=allocator),
        objectives=(ReconstructionConfig(),),
        lr=Constant(value=0.03),
    )
    run = Run(config, torch.zeros(24))
    with torch.no_grad():
        run.sae.encoder.bias[7] = -12.0
    steps = [train_step(run, inputs(64, seed=s), Clock(s, 800)) for s in range(600)]
    assert any(per_feature(step.trace.code)[7] for step in steps[500:]) == (wake > 0)
