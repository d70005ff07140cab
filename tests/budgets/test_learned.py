"""The learned budget: where it starts, what it is bounded by, how it is held to k, and how it is solved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import apportion as ap
from apportion.affinities import affinities_of
from apportion.allocators import SoftTopKConfig, TokenChoiceConfig
from apportion.budgets import LearnedConfig
from apportion.clock import END, Clock
from apportion.errors import InvalidConfig, InvalidInput
from apportion.firing import Firing
from apportion.schedules import Constant
from apportion.trace import Trace
from apportion.training import Run, RunConfig

from ..conftest import inputs, make_sae

ESTIMATORS = ["shared", "linear", "own"]


def sae_with(estimator="shared", k=8.0, spread=0.0, **settings):
    """An SAE under a learned budget whose scores differ between tokens by about ``spread``."""
    config = LearnedConfig(k=k, estimator=estimator, **settings)
    sae = make_sae(TokenChoiceConfig(budget=config))
    if spread:
        scorer = sae.allocator.budget.scorer
        readout = scorer.readout if estimator == "own" else scorer.weight
        with torch.no_grad():
            readout.normal_(
                std=spread * len(readout) ** 0.5 / scorer.reach, generator=torch.Generator().manual_seed(4)
            )
    return sae


def k_of(sae, x, clock=END):
    return sae.allocator.budget(sae.trace(x).pre, x, clock)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("k", "k_max"), [(8, None), (8, 9), (3.5, 70), (1.2, None)])
def test_every_token_starts_at_k(estimator, k, k_max):
    sae = sae_with(estimator, k, k_max=k_max)
    torch.testing.assert_close(k_of(sae, inputs(200)), torch.full((200,), float(k)), rtol=0.01, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_k_is_bounded(estimator):
    sae = sae_with(estimator, spread=50.0)
    k = k_of(sae, inputs(300))
    assert k.min() == 1.0 and k.max() == 16.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_score_is_what_the_docstring_says(estimator):
    sae, x = sae_with(estimator, spread=0.3), inputs(40)
    scorer, a = sae.allocator.budget.scorer, sae.trace(x).pre.dense()
    sae.allocator.observe(sae.trace(inputs(80, seed=9)), sae.dictionary(), Firing(96))
    score = {
        "shared": lambda: (a - scorer.mean) @ scorer.weight * 8 / 96**0.5,
        "linear": lambda: x @ scorer.weight * 8 / 24**0.5,
        "own": lambda: (x @ scorer.weight.T + scorer.bias).relu() @ scorer.readout * 2 / 96**0.5,
    }[estimator]()
    want = (16 * torch.sigmoid(score)).clamp(min=1)
    torch.testing.assert_close(k_of(sae, x), want, rtol=1e-4, atol=1e-4)


def test_the_published_layer_starts_as_the_encoder():
    config = TokenChoiceConfig(budget=LearnedConfig(k=8, estimator="own"))
    run = Run(RunConfig(sae=make_sae(config).config), torch.zeros(24))
    run.begin(torch.randn(24, generator=torch.Generator().manual_seed(1)))
    sae = run.sae
    scorer, x = sae.allocator.budget.scorer, inputs(20)
    torch.testing.assert_close(x @ scorer.weight.T + scorer.bias, (x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert scorer.readout.abs().sum() > 0


def test_the_shared_mean_is_that_of_the_affinities():
    sae = sae_with("shared")
    running = None
    for seed in range(4):
        trace = sae.trace(inputs(80, seed=seed))
        sae.allocator.observe(trace, sae.dictionary(), Firing(96))
        new = trace.pre.dense().detach()[::8].mean(0)
        running = new if running is None else 0.9 * running + 0.1 * new
    torch.testing.assert_close(sae.allocator.budget.scorer.mean, running)


def loss_at(mean, clock, **settings):
    sae = sae_with(**settings)
    budget, k = sae.allocator.budget, torch.full((10,), mean, requires_grad=True)
    trace = sae.trace(inputs(10), clock)
    trace = Trace(trace.x, None, trace.pre, trace.code, {"k": k}, trace.x_hat, clock)
    loss = budget.terms(trace, sae.dictionary())["budget"]
    return float(loss.detach()), float(torch.autograd.grad(loss, k)[0].sum())


def test_the_loss_is_two_sided_around_k_at_the_end():
    assert loss_at(8.0, END)[1] == pytest.approx(0.0, abs=1e-6)
    # One unit of the softplus's slope, times d_in / k = 3.
    assert loss_at(12.0, END)[1] == pytest.approx(3) and loss_at(4.0, END)[1] == pytest.approx(-3)
    want = F.softplus(torch.tensor(-4.0), beta=5) + F.softplus(torch.tensor(4.0), beta=5)
    assert loss_at(4.0, END, weight=0.5)[0] == pytest.approx(0.5 * float(want))


def test_as_published_nothing_holds_the_mean_up():
    assert loss_at(4.0, END, lower=False)[1] == pytest.approx(0.0, abs=1e-6)
    assert loss_at(12.0, END, lower=False, weight=1.0)[1] > 0.99


def test_early_on_the_mean_may_rise_and_not_fall():
    start = Clock(0, 100)
    assert loss_at(15.0, start)[1] == pytest.approx(0.0, abs=1e-6)
    assert loss_at(4.0, start)[1] < -0.99
    late = Clock(50, 100)
    assert loss_at(15.0, late)[1] > 0.99


def test_the_target_comes_down_from_d_in():
    settings = {"lower": False, "weight": 1.0, "relaxed": Constant(value=0.5)}
    halfway = 8 + 0.5 * (24 - 8)
    assert loss_at(halfway, END, **settings)[1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [2.0, 7.3, 15.0])
def test_solving_meets_k_in_whole_numbers(estimator, k):
    sae = sae_with(estimator, spread=0.3)
    blocks = [inputs(500, seed=s) for s in range(6)]
    fitted, calibration = sae.calibrate(lambda: iter(blocks), k)
    counts = torch.cat([fitted.encode(x).counts() for x in blocks]).double()
    assert counts.mean() == pytest.approx(k, rel=2e-3) and calibration.l0 == pytest.approx(k, rel=2e-3)
    assert counts.std() > 0.5
    assert fitted.k == k and fitted.config.allocator.budget.k_max == 16
    assert (counts <= 16).all()


def test_solving_leaves_the_order_of_the_tokens():
    sae, x = sae_with(spread=0.3), inputs(500)
    before = k_of(sae, x).detach()
    fitted, _ = sae.calibrate(lambda: iter([x]), 5.0)
    after = k_of(fitted, x).detach()[before.argsort()]
    assert (after.diff() >= -1e-4).all() and after.diff().max() > 0.01


def test_a_mean_beyond_the_bounds_is_refused():
    for k in (0.5, 16.0, 20.0):
        with pytest.raises(InvalidInput, match=f"k = {k:g} is not within this budget's bounds, 1 to 16"):
            sae_with(spread=0.3).calibrate(lambda: iter([inputs(100)]), k)
    with pytest.raises(InvalidInput, match="no tokens"):
        sae_with().calibrate(lambda: iter([]), 8.0)


def test_k_never_exceeds_the_number_of_features():
    config = SoftTopKConfig(budget=LearnedConfig(k=12, k_max=40))
    sae = make_sae(config, d_sae=16)
    with torch.no_grad():
        sae.allocator.budget.offset.fill_(50.0)
    assert (sae.trace(inputs(20), Clock(0, 10)).notes["k"] == 16).all()
    with pytest.raises(InvalidConfig, match="k = 16 leaves a learned k no room below d_sae = 16"):
        make_sae(TokenChoiceConfig(budget=LearnedConfig(k=16)), d_sae=16)


@pytest.mark.parametrize("rule", [TokenChoiceConfig, SoftTopKConfig])
def test_a_k_without_room_is_refused_before_a_folder_is_claimed(rule, tmp_path):
    source = ap.TensorSource(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=8, d_sae=16, allocator=rule(budget=LearnedConfig(k=16))))
    with pytest.raises(InvalidConfig, match="k = 16 leaves a learned k no room"):
        ap.train({"r": run}, source, tmp_path / "out", ap.TrainConfig(n_tokens=256, batch_size=16))
    assert not (tmp_path / "out" / "train.json").exists()


@pytest.mark.parametrize("k", [3, 4, 5, 7, 13])
def test_tokens_that_tie_do_not_tip_over_an_edge(k):
    """Every score is the same: the only whole number that all can get is k itself."""
    sae = sae_with("shared", k=8.0)
    _, calibration = sae.calibrate(lambda: iter([inputs(100)]), float(k))
    assert calibration.l0 == k


def test_training_in_float64_observes_too():
    sae = sae_with("shared").double()
    trace = sae.trace(inputs(20, dtype=torch.float64))
    sae.allocator.observe(trace, sae.dictionary(), Firing(96))
    assert sae.allocator.budget.scorer.mean.abs().sum() > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_float64_input_is_worked_in_float64(estimator):
    sae, x = sae_with(estimator, spread=0.3), inputs(30)
    coarse = sae.allocator.budget(sae.trace(x).pre, x, END)
    settled = affinities_of(x, sae.dictionary(), settle=True)
    fine = sae.allocator.budget(settled.precise(torch.arange(30)), x.double(), END)
    assert fine.dtype == torch.float64
    torch.testing.assert_close(fine, coarse.double(), rtol=1e-5, atol=1e-5)


def test_a_token_near_a_half_gets_the_same_k_in_any_batch():
    sae, x = sae_with("shared", spread=0.3), inputs(64)
    with torch.no_grad():
        # Put every token in turn as close to a half as float32 can tell.
        for row in range(0, 64, 8):
            score = sae.allocator.budget.scorer(sae.trace(x[row : row + 1]).pre, x[row : row + 1])
            share = torch.tensor(7.5 / 16)
            sae.allocator.budget.offset.copy_(torch.logit(share) - score[0])
            frozen = sae.freeze()
            alone, together = frozen.encode(x[row]).counts(), frozen.encode(x).counts()[row]
            assert alone == together


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "greater than or equal to 1"),
        ({"k": 8, "k_max": float("inf")}, "finite"),
        ({"k": 8, "k_max": 8}, "k_max = 8 must"),
    ],
)
def test_bad_settings_are_said(settings, message):
    with pytest.raises(InvalidConfig, match=message):
        LearnedConfig.parse({"kind": "learned", **settings}, "budget")


def test_soft_and_hard_share_the_budget():
    sae = make_sae(SoftTopKConfig.for_k(8))
    frozen = sae.freeze()
    assert isinstance(frozen.config.allocator, TokenChoiceConfig)
    assert frozen.config.allocator.budget == sae.config.allocator.budget
    assert torch.equal(frozen.allocator.budget.offset, sae.allocator.budget.offset)
    assert Clock(0, 10).progress == 0
