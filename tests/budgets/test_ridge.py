"""The ridge budget: k follows the predicted score, within its bounds, and its mean is k."""

from __future__ import annotations

import copy

import pytest
import torch

from apportion.allocators import TokenChoiceConfig
from apportion.budgets import LessonConfig, RidgeConfig
from apportion.budgets.lesson import Recent
from apportion.clock import END, Clock
from apportion.errors import InvalidConfig, InvalidInput
from apportion.firing import Firing
from apportion.schedules import Constant, Jump
from apportion.training import Run, RunConfig, train_step

from .. import laws
from ..conftest import inputs, make_sae

MAPS = ["sigmoid", "linear", "rank"]
D_IN = 24


def rule(k=8.0, **settings):
    return TokenChoiceConfig(budget=RidgeConfig(k=k, **settings))


def with_probe(k=8.0, spread=1.0, **settings):
    """An SAE whose probe is already there; scores of ``inputs`` differ by about ``spread``."""
    sae = make_sae(rule(k, **settings))
    with torch.no_grad():
        sae.allocator.budget.weight.normal_(std=spread / 5, generator=torch.Generator().manual_seed(4))
        sae.allocator.budget.bias.fill_(0.3)
    return sae


def k_of(sae, x):
    return sae.allocator.budget(sae.trace(x).pre, x, END)


def text_target(x, noise=0.0):
    generator = torch.Generator().manual_seed(len(x))
    return 0.7 * x[:, 0] - 0.4 * x[:, 1] + 0.5 + noise * torch.randn(len(x), generator=generator)


def taught(k=8.0, steps=40, batch=1024, until=None, **settings):
    """A run of ``steps`` steps, stopped before step ``until``, on tokens with targets that a probe can read."""
    sae = make_sae(rule(k, **settings))
    run = Run(RunConfig(sae=sae.config, lr=Constant(value=1e-3)), torch.zeros(D_IN))
    for step in range(steps if until is None else until):
        x = inputs(batch, seed=step)
        train_step(run, x, Clock(step, steps), target=text_target(x, 0.3))
    return run


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["sigmoid", "rank"])
def test_law(law, name):
    law(rule(laws.K, map=name))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("k", "bounds"), [(8, {}), (3.5, {"k_max": 70}), (0.4, {}), (8, {"k_min": 7.5}), (90, {})]
)
def test_every_token_starts_at_k(name, k, bounds):
    sae = make_sae(rule(k, map=name, **bounds))
    torch.testing.assert_close(k_of(sae, inputs(50)), torch.full((50,), float(k)).double(), rtol=1e-4, atol=0)


def test_the_defaults_of_the_bounds_are_the_published_ratios():
    assert RidgeConfig(k=80).bounds == (20, 320)
    assert RidgeConfig(k=2).bounds == (1, 8) and RidgeConfig(k=0.4).bounds == (0.4, 1.6)


@pytest.mark.parametrize("name", MAPS)
def test_k_rises_with_the_predicted_score_and_stays_in_its_bounds(name):
    sae, x = with_probe(map=name, spread=4.0), inputs(2000)
    fitted, _ = sae.calibrate(lambda: iter([x]), 8.0)
    for one in (sae, fitted):
        score, k = one.allocator.budget.score(x).detach(), k_of(one, x).detach()
        assert (k[score.argsort()].diff() >= 0).all() and k.std() > 1
        assert k.min() >= 2 and k.max() <= 32
    assert k.max() > 25 and k.min() < 3


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("sigmoid", lambda z, q: torch.sigmoid(1.5 * z - 0.7)),
        ("linear", lambda z, q: (0.5 + (1.5 * z - 0.7) / 4).clamp(0, 1)),
        ("rank", lambda z, q: torch.sigmoid(torch.logit(q) - 0.7)),
    ],
)
def test_the_map_is_what_the_docstring_says(name, share):
    sae, x = with_probe(map=name, slope=1.5), inputs(2000)
    budget = sae.allocator.budget
    score = (x @ budget.weight + budget.bias).double()
    budget.map.fit(score)
    budget.offset.fill_(-0.7)
    quantile = (score.argsort().argsort() + 0.5) / len(score)
    want = 2 + 30 * share(score, quantile.double())
    torch.testing.assert_close(k_of(sae, x).detach(), want, rtol=1e-4, atol=0.15 if name == "rank" else 1e-3)


def test_the_rank_map_sees_only_the_order_of_scores():
    x = inputs(3000)
    plain, odd = with_probe(map="rank"), with_probe(map="rank")
    with torch.no_grad():
        odd.allocator.budget.weight.mul_(37)
        odd.allocator.budget.bias.mul_(37).add_(5)
    plain, odd = (sae.calibrate(lambda: iter([x]), 8.0)[0] for sae in (plain, odd))
    torch.testing.assert_close(k_of(plain, x), k_of(odd, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("k", [2.5, 8.0, 30.0])
def test_solving_meets_k_exactly(name, k):
    blocks = [inputs(500, seed=s) for s in range(6)]
    fitted, calibration = with_probe(map=name).calibrate(lambda: iter(blocks), k)
    counts = torch.cat([fitted.encode(x).counts() for x in blocks]).double()
    assert counts.mean() == pytest.approx(k, rel=1e-3) == calibration.l0
    assert fitted.k == k and fitted.config.allocator.budget.bounds == (2, 32)
    assert fitted.config.allocator.budget.lesson is None and not list(fitted.allocator.parameters())
    kept = {name.removeprefix("budget.") for name in fitted.allocator.state_dict()}
    assert kept - {"map.quantiles"} == {"weight", "bias", "offset"}


def test_a_mean_beyond_the_bounds_is_refused():
    with pytest.raises(InvalidInput, match="no offset gives these tokens 40 features on average"):
        with_probe().calibrate(lambda: iter([inputs(100)]), 40.0)


def test_scores_are_clipped():
    sae, x = with_probe(clip=(-0.5, 0.5), spread=4.0), inputs(200)
    score = sae.allocator.budget.score(x)
    assert score.min() == -0.5 and score.max() == 0.5


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_folding_a_scale_in_is_exact_with_the_lesson_too(scale):
    run, x = taught(until=39), inputs(300)
    budget = run.sae.allocator.budget
    assert budget.lesson.moved.abs().sum() > 0
    folded = copy.deepcopy(budget)
    folded.fold(scale)
    assert torch.equal(folded.score(x / scale), budget.score(x))
    sums = folded.lesson.sums
    assert torch.equal(sums[:, :-2, :-2] * scale**2, budget.lesson.sums[:, :-2, :-2])
    assert torch.equal(sums[:, -1, -1], budget.lesson.sums[:, -1, -1])


def test_the_probe_and_k_survive_bf16():
    sae, _ = taught().sae.freeze().calibrate(lambda: iter([inputs(2000, seed=99)]), 8.0)
    x = inputs(500).bfloat16().float()
    before = k_of(sae, x)
    sae.to(torch.bfloat16)
    assert torch.equal(k_of(sae, x), before) and sae.allocator.budget.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(k_of(sae, x), before)


def test_the_probe_is_the_ridge_regression_of_the_tokens_gathered():
    linear = pytest.importorskip("sklearn.linear_model")
    gather = Jump(start=1.0, end=0.0, at=0.25)
    run = taught(lesson=LessonConfig(gather=gather, penalties=(3.0,)), steps=8, until=4)
    rows = torch.cat([inputs(1024, seed=step) for step in range(2)])
    targets = torch.cat([text_target(inputs(1024, seed=step), 0.3) for step in range(2)])
    want = linear.Ridge(alpha=3.0).fit(rows.double().numpy(), targets.double().numpy())
    budget = run.sae.allocator.budget
    assert budget.weight.tolist() == pytest.approx(want.coef_, abs=1e-5)
    assert float(budget.bias) == pytest.approx(want.intercept_, abs=1e-5)
    assert float(budget.lesson.penalty) == pytest.approx(2 * 3.0 / 2048)


def test_tokens_without_a_target_teach_nothing():
    gather = Jump(start=1.0, end=0.0, at=0.25)
    lesson = LessonConfig(gather=gather)
    runs = []
    for spoil in (False, True):
        run = taught(lesson=lesson, steps=8, until=0)
        for step in range(3):
            x = inputs(200, seed=step)
            y = text_target(x)
            if spoil:
                x, y = torch.cat([x, 5 * inputs(60, seed=90)]), torch.cat([y, torch.full((60,), torch.nan)])
            train_step(run, x, Clock(step, 8), target=y)
        runs.append(run.sae.allocator.budget)
    torch.testing.assert_close(runs[0].weight, runs[1].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAPS)
def test_in_training_the_mean_over_tokens_is_k_to_a_percent(name):
    frozen = taught(map=name, until=35)
    joint = taught(map=name)
    for run in (frozen, joint):
        counts = torch.cat([run.sae.encode(inputs(1024, seed=step)).counts() for step in range(35)]).double()
        assert counts.mean() == pytest.approx(8, rel=0.01) and counts.std() > 1


def test_the_stages_follow_the_clock():
    until = {step: taught(until=step).sae.allocator.budget for step in (4, 5, 36, 40)}
    assert until[4].weight.abs().sum() > 0, "solved at the last of the steps gathered"
    assert torch.equal(until[4].weight, until[36].weight) and torch.equal(until[36].weight, until[40].weight)
    assert until[36].lesson.moved.abs().sum() == 0, "frozen"
    assert until[40].lesson.moved.abs().sum() > 0, "joint"
    assert torch.equal(until[36].lesson.sums, until[5].lesson.sums)


def test_the_joint_loss_is_what_the_docstring_says():
    sae, x = with_probe(lesson=LessonConfig(joint=Constant(value=0.3), penalty=0.7, leash=0.4)), inputs(50)
    budget, y = sae.allocator.budget, text_target(x)
    with torch.no_grad():
        budget.lesson.moved.normal_(generator=torch.Generator().manual_seed(1))
        budget.lesson.moved_bias.fill_(-0.2)
        budget.lesson.mean.fill_(0.5)
    y[7] = torch.nan
    loss = budget.terms(sae.trace(x, target=y), sae.dictionary())["probe"]
    weight = budget.weight + budget.lesson.moved
    predicted = x @ budget.weight + (x - 0.5) @ budget.lesson.moved + budget.bias - 0.2
    error = (predicted - y)[~y.isnan()].square().mean()
    want = error + 0.35 * weight.square().sum() + 0.4 * (budget.lesson.moved.norm() + 0.2)
    torch.testing.assert_close(loss, 0.3 * want, rtol=1e-4, atol=1e-5)
    assert budget.terms(sae.trace(x), sae.dictionary()) == {}
    assert budget.terms(sae.trace(x, target=torch.full_like(y, torch.nan)), sae.dictionary()) == {}


def test_reconstruction_gives_the_probe_no_gradient():
    sae, x = with_probe(), inputs(50)
    trace = sae.trace(x, target=text_target(x))
    (trace.x - trace.x_hat).square().sum().backward()
    assert sae.allocator.budget.lesson.moved.grad is None


def test_the_leash_follows_the_fall_of_the_loss():
    sae, x = with_probe(lesson=LessonConfig(joint=Constant(value=1.0), leash=0.2)), inputs(50)
    lesson, y = sae.allocator.budget.lesson, text_target(x)
    weight, bias = torch.zeros(D_IN).double(), torch.zeros(()).double()  # the loss is the mean of y²
    seen = []
    for size in [1.0, 1.0, 1.0, 0.9, 0.98, 0.9, 0.9, 2.0]:
        trace = sae.trace(x, target=size**0.5 * y)
        lesson.adapt(trace, weight, bias)
        seen.append(float(lesson.leash))
    assert seen == pytest.approx([0.2, 0.2, 0.2, 0.16, 0.192, 0.1536, 0.18432, 0.221184])
    for _ in range(40):
        lesson.adapt(trace, weight, bias)
    assert float(lesson.leash) == pytest.approx(0.5)


def test_the_offset_is_solved_when_half_as_many_scores_are_new():
    recent, asked = Recent(), []
    for step in range(200):
        held = recent.add(torch.full((1024,), float(step)))
        asked += [] if held is None else [(step + 1, len(held))]
    assert asked[:5] == [(1, 1024), (2, 2048), (4, 4096), (8, 8192), (16, 16384)]
    assert asked[-1] == (192, Recent.SIZE) and asked[-2] == (128, Recent.SIZE)
    assert int(recent.scores.min()) == 200 - Recent.SIZE // 1024
    recent.clear()
    assert recent.add(torch.ones(2 * Recent.SIZE)) is not None and (recent.scores == 1).all()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (lambda x: torch.full((len(x),), 2.0), r"all 128 had the target 2, so it cannot be fitted; give scores"),
        (lambda x: torch.full((len(x),), torch.nan), r"none had a target, so it cannot be fitted"),
    ],
)
def test_targets_without_information_are_refused(targets, words):
    run = taught(until=0)
    x = inputs(128)
    with pytest.raises(InvalidInput, match=words):
        train_step(run, x, Clock(0, 5), target=targets(x))


def test_without_targets_nothing_is_learned():
    sae, x = make_sae(rule()), inputs(50)
    sae.allocator.observe(sae.trace(x, Clock(0, 5)), sae.dictionary(), Firing(96))
    assert not sae.allocator.budget.weight.any() and not int(sae.allocator.budget.lesson.taught)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "greater than 0"),
        ({"k": 8, "k_min": 9}, r"k = 8 must lie between k_min = 9 and k_max = 32, for it is the mean"),
        ({"k": 8, "k_max": 5}, r"k = 8 must lie between k_min = 2 and k_max = 5, for it is the mean"),
        ({"k": 8, "k_min": 8, "k_max": 8}, r"k = 8 must lie between k_min = 8 and k_max = 8"),
        ({"k": 8.3, "k_max": 8.4}, r"k_min = 2.075 and k_max = 8.4 round to 2 and 8, and k = 8.3 is not between"),
        ({"k": 8, "clip": (1, 1)}, r"clip = \(1.0, 1.0\) must be a lower and a higher score"),
        ({"k": 8, "lesson": {"penalties": [1, 0.1]}}, r"must be positive and ascend"),
        ({"k": 8, "lesson": {"leash_bounds": [0.5, 0.1]}}, r"two positive numbers that ascend"),
        ({"k": 8, "map": "cubic"}, "'map' = 'cubic'"),
    ],
)
def test_bad_settings_are_said(settings, message):
    with pytest.raises(InvalidConfig, match=message) as refused:
        RidgeConfig.parse({"kind": "ridge", **settings}, "budget")
    assert len(str(refused.value).splitlines()) == 1
