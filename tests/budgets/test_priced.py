"""The priced budget: its labels are the best split, its k follows them, and its mean is k."""

from __future__ import annotations

import copy

import pytest
import torch

from apportion.allocators import TokenChoiceConfig
from apportion.budgets import LabelsConfig, PricedConfig
from apportion.budgets.labels import best_counts, first_features, some_rows
from apportion.clock import END, Clock
from apportion.errors import InvalidConfig, InvalidInput
from apportion.firing import Firing
from apportion.metrics.correlation import spearman
from apportion.ops.waterfill import prefix_errors
from apportion.sae import SAE, SAEConfig
from apportion.schedules import Constant
from apportion.training import Run, RunConfig, train_step

from .. import laws
from ..conftest import inputs, make_sae

READS = ["x", "profile", "both"]
D_IN = 24


def rule(k=8.0, **settings):
    return TokenChoiceConfig(budget=PricedConfig(k=k, **settings))


def k_of(sae, x):
    return sae.allocator.budget(sae.trace(x).pre, x, END)


def simple_and_hard(n, seed=0, width=64):
    """[n, 64] tokens of 1 to 16 of 64 orthogonal features, and how many; the first coordinates tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(1, 17, (n,), generator=generator)
    chosen = torch.rand(n, width, generator=generator).argsort(1).argsort(1) < count[:, None]
    return chosen * (0.8 + 0.4 * torch.rand(n, width, generator=generator)), count


def knowing(k=8.0, **settings):
    """An SAE that knows these features, so that the oracle's k is their number."""
    sae = SAE(SAEConfig(d_in=64, d_sae=64, allocator=rule(k, **settings)))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(64))
        sae.W_dec.copy_(torch.eye(64))
    return sae


def watch(sae, steps=20, n=400):
    """Let the rule see so many steps of a dictionary that stays as it is."""
    for step in range(steps):
        x, _ = simple_and_hard(n, seed=step)
        sae.allocator.observe(sae.trace(x, Clock(step, steps)), sae.dictionary(), Firing(sae.d_sae))
    return sae


def taught(steps=40, batch=1024, **settings):
    sae = make_sae(rule(**settings))
    run = Run(RunConfig(sae=sae.config, lr=Constant(value=1e-3)), torch.zeros(D_IN))
    for step in range(steps):
        train_step(run, inputs(batch, seed=step), Clock(step, steps))
    return run


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("reads", ["x", "both"])
def test_law(law, reads):
    law(rule(laws.K, reads=reads, labels=LabelsConfig(every=3)))


@pytest.mark.parametrize(("k", "bounds"), [(8, {}), (3.5, {"k_max": 70}), (0.4, {}), (8, {"k_min": 7.5})])
def test_every_token_starts_at_k(k, bounds):
    sae = make_sae(rule(k, **bounds))
    torch.testing.assert_close(k_of(sae, inputs(50)), torch.full((50,), float(k)).double(), rtol=1e-6, atol=0)


def test_labels_are_the_best_split_of_their_budget():
    sae, x = make_sae(rule()), inputs(40)
    trace, rows = sae.trace(x), some_rows(40, 10, x.device)
    assert rows.tolist() == list(range(0, 40, 4))
    order = first_features(trace, rows, 20)
    best = best_counts(trace, sae.dictionary(), rows, order, 2.0)
    errors = prefix_errors(x[rows] - sae.b_dec.detach(), sae.W_dec.detach(), order.features, order.values)
    errors, spent = errors.double(), int(best.sum())
    assert 12 <= spent <= 20 and best.float().std() > 0.5
    # The smallest error of every budget, token by token: least[m] with m features among the tokens so far.
    least = torch.full((spent + 1,), torch.inf, dtype=torch.float64)
    least[0] = 0.0
    for row in errors:
        least = torch.stack([(least[: m + 1][-21:] + row[: m + 1].flip(0)[-21:]).min() for m in range(spent + 1)])
    assert float(errors.gather(1, best[:, None]).sum()) == pytest.approx(float(least[spent]), rel=1e-9)


@pytest.mark.parametrize("n", [1, 5, 256, 257, 2048])
def test_some_rows_are_spread_over_all(n):
    rows = some_rows(n, 256, torch.device("cpu"))
    assert len(rows) <= 256 and len(rows) >= min(n, 129)
    assert rows[0] == 0 and int(rows[-1]) < n <= int(rows[-1]) + max(2 * n // 256, 1) + 1


def test_k_follows_the_number_of_features_a_token_needs():
    sae = watch(knowing(8.5))
    x, count = simple_and_hard(2000, seed=99)
    k = k_of(sae, x)
    assert spearman(k, count) > 0.97
    assert (k - count).abs().mean() < 1 and float(k.mean()) == pytest.approx(8.5, rel=0.05)


def test_what_it_does_not_read_it_does_not_use():
    x, count = simple_and_hard(2000, seed=99)
    pre = knowing().trace(x).pre
    both, profile, linear = (
        watch(knowing(8.5, reads=reads)).allocator.budget for reads in ("both", "profile", "x")
    )
    assert [len(one.weight) for one in (both, profile, linear)] == [75, 11, 64]
    torch.testing.assert_close(linear.score(pre, x), x.double() @ linear.weight.double())
    assert spearman(linear.score(pre, x), count) > 0.8  # here the sum of x is enough
    assert spearman(profile.score(pre, 0 * x), profile.score(pre, x)) > 0.9  # but for the length of x


def test_labels_come_every_so_many_steps():
    sae, seen = knowing(labels=LabelsConfig(every=4)), []
    for step in range(9):
        before = sae.allocator.budget.weight.clone()
        watch(sae, steps=1)
        seen += [step] if not torch.equal(before, sae.allocator.budget.weight) else []
    assert seen[0] == 0 and set(seen) <= {0, 4, 8}
    assert int(sae.allocator.budget.regression.steps) == 9


def test_old_labels_fade():
    sae = watch(knowing(labels=LabelsConfig(every=1, rows=100, memory=400)), steps=40, n=100)
    assert 390 < float(sae.allocator.budget.regression.sums[-2, -2]) <= 400


@pytest.mark.parametrize("reads", READS)
def test_in_training_the_mean_over_tokens_is_k(reads):
    run = taught(reads=reads)
    counts = torch.cat([run.sae.encode(inputs(1024, seed=step)).counts() for step in range(35)]).double()
    assert counts.mean() == pytest.approx(8, rel=0.03) and counts.std() > 0.5


def test_between_labels_the_offset_pulls_the_mean_to_k():
    sae = watch(knowing(labels=LabelsConfig(every=1000)), steps=1)
    with torch.no_grad():
        sae.allocator.budget.offset.add_(0.5)
    x, _ = simple_and_hard(400, seed=7)
    before = float(k_of(sae, x).mean())
    watch(sae, steps=40)
    assert before > 11 and float(k_of(sae, x).mean()) == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("k", [2.5, 8.0, 20.0])
def test_solving_meets_k_exactly(k):
    sae, blocks = watch(knowing(k)), [simple_and_hard(500, seed=s)[0] for s in range(6)]
    fitted, calibration = sae.calibrate(lambda: iter(blocks), k)
    assert calibration.l0 == pytest.approx(k, rel=1e-3) or calibration.short > 0
    k_mean = torch.cat([k_of(fitted, x) for x in blocks]).round().mean()
    assert float(k_mean) == pytest.approx(k, rel=1e-3)
    config = fitted.config.allocator.budget
    assert config.labels is None and config.bounds == sae.config.allocator.budget.bounds
    assert set(fitted.allocator.state_dict()) == {f"budget.{name}" for name in ("weight", "offset", "level")}
    assert {t.dtype for t in fitted.allocator.state_dict().values()} == {torch.float32}


def test_a_mean_beyond_the_bounds_is_refused():
    with pytest.raises(InvalidInput, match="no offset gives these tokens 60 features on average"):
        watch(knowing()).calibrate(lambda: iter([simple_and_hard(100)[0]]), 60.0)


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_folding_a_scale_in_is_exact_in_training_too(scale):
    sae = watch(knowing())
    x, _ = simple_and_hard(300, seed=5)
    folded = copy.deepcopy(sae.allocator.budget)
    folded.fold(scale)
    raw = sae.fold(scale).trace(x / scale).pre
    assert torch.equal(folded.score(raw, x / scale), sae.allocator.budget.score(sae.trace(x).pre, x))
    sums, before = folded.regression.sums, sae.allocator.budget.regression.sums
    assert torch.equal(sums[:64, :64] * scale**2, before[:64, :64])
    assert torch.equal(sums[:64, 64:] * scale, before[:64, 64:]) and torch.equal(sums[64:, 64:], before[64:, 64:])


def test_the_sums_stay_in_double_precision():
    sae = watch(knowing(), steps=3).to(torch.bfloat16)
    budget = sae.allocator.budget
    assert budget.regression.sums.dtype == torch.float64 and budget.weight.dtype == torch.float32


def test_a_diverging_run_is_left_to_say_so():
    sae = watch(knowing(labels=LabelsConfig(every=1)), steps=2)
    with torch.no_grad():
        sae.W_dec[3] = torch.nan
    watch(sae, steps=2)
    x, _ = simple_and_hard(400)
    before = sae.allocator.budget.weight.clone()
    x[4] = torch.nan  # one that is labelled
    sae.allocator.observe(sae.trace(x), sae.dictionary(), Firing(64))
    assert torch.equal(sae.allocator.budget.weight, before) and before.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "greater than 0"),
        ({"k": 8, "k_min": 9}, r"k = 8 must lie between k_min = 9 and k_max = 32"),
        ({"k": 8, "reads": "text"}, "reads"),
        ({"k": 8, "labels": {"every": 0}}, "greater than 0"),
        ({"k": 8, "labels": {"penalty": 0}}, "greater than 0"),
    ],
)
def test_bad_settings_are_said(settings, message):
    with pytest.raises(InvalidConfig, match=message):
        PricedConfig.parse({"kind": "priced", **settings}, "budget")
