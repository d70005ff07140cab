"""The price of sparsity: where it leads L0, what bounds it, and that it is worked out on the clock alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

import apportion as ap
from apportion.allocators import AllocatorConfig, ReLUConfig, TokenChoiceConfig
from apportion.clock import Clock
from apportion.code import Code
from apportion.errors import InvalidConfig
from apportion.firing import Firing
from apportion.objectives import NestedConfig, ReconstructionConfig, SparsityConfig
from apportion.objectives.sparsity import AIM
from apportion.recipes import adjusted, find_recipe
from apportion.trace import Penalty, Trace
from apportion.training import Run, train_step
from apportion.training.checkpoint import restore_run, run_tensors
from apportion.world import World

from ..conftest import inputs, make_sae

K = 8.0


def trace_of(l0, step, n_steps=100, n=50, d_sae=200):
    """A trace whose code has ``l0`` features per token and whose rule pays 3."""
    z = torch.zeros(n, d_sae)
    z.view(-1)[torch.arange(round(l0 * n)) * (n * d_sae // max(round(l0 * n), 1))] = 1.0
    x = torch.zeros(n, 4)
    penalty = Penalty(torch.tensor(3.0), K)
    return Trace(x, None, None, Code.from_dense(z), {}, x, Clock(step, n_steps), penalty)


def test_the_first_step_costs_the_starting_price():
    objective = SparsityConfig(start=0.7).build()
    assert float(objective(trace_of(100, 0), None, None)) == pytest.approx(0.7 * 3)


def test_too_many_features_raise_the_price_and_too_few_lower_it():
    for l0, sign in ((1.5 * K, 1), (K / 1.5, -1)):  # further off, and bounds would end it
        objective = SparsityConfig(reach=0.01).build()
        prices = []
        for step in range(40):
            objective.observe(trace_of(l0, step))
            prices.append(math.log(objective.price(Clock(step + 1, 100), K)))
        assert sign * prices[0] >= 0
        assert all(sign * (b - a) > 0 for a, b in itertools.pairwise(prices[2:]))


def test_l0_is_led_evenly_in_its_logarithm():
    objective = SparsityConfig(reach=0.5).build()
    objective.observe(trace_of(128, 0))
    at = [objective.target(Clock(step, 1000), K) for step in (0, 250, 500, 990)]
    assert at == pytest.approx([128, math.sqrt(128 * AIM * K), AIM * K, AIM * K])


def test_a_start_below_k_is_not_led_up_from_there():
    objective = SparsityConfig().build()
    objective.observe(trace_of(2, 0))
    assert objective.target(Clock(0, 100), K) == pytest.approx(AIM * K)


def test_the_price_stays_in_bounds_and_does_not_wind_up():
    objective = SparsityConfig(start=2.0, bounds=(0.1, 10.0), reach=0.01).build()
    for step in range(400):
        objective.observe(trace_of(100, step, 1000))
    assert objective.price(Clock(400, 1000), K) == pytest.approx(20)
    steps = 0
    while objective.price(Clock(400, 1000), K) > 2 and steps < 300:
        objective.observe(trace_of(K / 10, 400, 1000))
        steps += 1
    assert steps < 150, "a sum that had gone on growing beyond the bound would take as long to come back"


def test_processes_with_unequal_shares_see_the_l0_of_all_tokens_where_these_are():
    class Cards(World):
        """Another process has 150 tokens with two features each; a card reduces nothing that lies on the CPU."""

        def sum(self, tensor):
            assert tensor.device.type == "meta"
            return torch.tensor([40.0 * 50 + 2 * 150, 200], dtype=torch.float64)

    objective, trace = SparsityConfig().build(), trace_of(40, 0)
    objective.observe(dataclasses.replace(trace, x=trace.x.to("meta")), Cards(0, 2))
    assert float(objective.first) == pytest.approx(11.5)


@pytest.mark.parametrize(("l0", "price"), [(100.0, 20.0), (8.2, None), (0.1, 0.2)])
def test_it_reports_the_price_that_is_paid_and_whether_that_is_at_a_bound(l0, price):
    objective = SparsityConfig(start=2.0, bounds=(0.1, 10.0), reach=0.01).build()
    assert objective.report() == {}
    for _ in range(200):
        objective.observe(trace_of(l0, 60))
    report = objective.report(Clock(100, 100))
    assert report.keys() == {"price", "l0", "k", "at_bound"}
    assert report["l0"] == pytest.approx(l0) and report["k"] == K and report["at_bound"] is (price is not None)
    assert report["price"] == pytest.approx(price or objective.price(Clock(100, 100), K))
    assert report["price"] != pytest.approx(2.0 * math.exp(float(objective.summed))) or price


def test_it_depends_on_what_it_saw_and_the_clock_alone():
    one, other = SparsityConfig().build(), SparsityConfig().build()
    for step, l0 in enumerate((90, 60, 40, 20)):
        one.observe(trace_of(l0, step))
        one(trace_of(l0, step), None, None)  # asking changes nothing
        one.price(Clock(77, 100), K)
        other.observe(trace_of(l0, step))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_a_rule_that_pays_nothing_is_refused_in_a_sentence():
    sae, x = make_sae(TokenChoiceConfig.for_k(4)), inputs(8)
    with pytest.raises(InvalidConfig, match="this rule pays none; leave that objective out"):
        SparsityConfig().build()(sae.trace(x), sae.dictionary(), Firing(sae.d_sae))


def test_bounds_are_factors_around_one():
    with pytest.raises(InvalidConfig, match="must be positive factors around 1"):
        SparsityConfig.parse({"bounds": (2.0, 10.0)}, "sparsity")


TRUE = 100
"""Features that the tokens of ``tokens`` are made of, some six at a time."""


def tokens(n, generator):
    directions = torch.randn(TRUE, 24, generator=torch.Generator().manual_seed(0))
    fires = torch.rand(n, TRUE, generator=generator) < 6 / TRUE
    return fires * (0.5 + torch.rand(n, TRUE, generator=generator)) @ directions


RULES = {
    "relu": '{"kind": "relu", "k": 6}',
    "jump_relu": '{"kind": "jump_relu", "k": 6, "theta": 0.02, "width": 0.02, "pace": 10}',
    "gated": '{"kind": "gated", "k": 6}',
}


def over(rule):
    """The recipe of nested prefixes over a rule that is held to its k by a price."""
    made = find_recipe("matryoshka").make(24, 96, 6.0, 0)
    return adjusted(made, "matryoshka", [f"matryoshka.allocator={RULES[rule]}"], ["matryoshka"])


def kinds(config):
    return [objective.kind for objective in config.objectives]


@pytest.mark.parametrize("rule", RULES)
def test_a_price_comes_with_a_rule_that_pays_one(rule):
    assert kinds(over(rule)) == ["nested", "aux_k", "sparsity"]
    assert "sparsity" in kinds(find_recipe(rule).make(24, 96, 6.0, 0))
    assert kinds(find_recipe("relu").make(24, 96, 6.0, 0)) == ["reconstruction", "aux_k", "sparsity"]
    assert "sparsity" not in kinds(find_recipe("mutual_choice").make(24, 96, 6.0, 0))


def test_objectives_that_were_chosen_stay_what_they_are():
    recipe, settings = "relu_l1", ['relu_l1.objectives=[{"kind": "reconstruction"}]']
    chosen = adjusted(find_recipe(recipe).make(24, 96, 6.0, 0), recipe, settings, [recipe])
    assert kinds(chosen) == ["reconstruction"]
    recipe, settings = (
        "matryoshka",
        [
            'matryoshka.objectives=[{"kind": "nested"}]',
            f"matryoshka.allocator={RULES['relu']}",
        ],
    )
    assert kinds(adjusted(find_recipe(recipe).make(24, 96, 6.0, 0), recipe, settings, [recipe])) == ["nested"]


@pytest.mark.parametrize(
    ("rule", "objectives", "words"),
    [
        (ReLUConfig(k=4), (ReconstructionConfig(),), r"^run 'r' .* add 'sparsity' \(SparsityConfig\(\)\)"),
        (ReLUConfig(k=4), (NestedConfig(),), "add 'sparsity'"),
        (TokenChoiceConfig.for_k(4), (ReconstructionConfig(), SparsityConfig()), "leave that objective out"),
    ],
)
def test_a_price_and_a_rule_that_pays_it_go_together_or_nothing_begins(tmp_path: Path, rule, objectives, words):
    run = ap.RunConfig(sae=ap.SAEConfig(d_in=24, d_sae=96, allocator=rule), objectives=objectives)
    with pytest.raises(InvalidConfig, match=words) as refusal:
        ap.train({"r": run}, ap.TensorSource(inputs(4000)), tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "train.json").exists()


@pytest.fixture
def undeclared():
    """A rule from outside that pays, and a config that does not say so."""

    class OutsideConfig(ReLUConfig):
        penalised: ClassVar[bool] = False
        kind: Literal["outside"] = "outside"

    yield OutsideConfig(k=4)
    AllocatorConfig.members.pop("outside")


def test_a_rule_that_does_not_say_that_it_pays_is_not_trained_unpriced(tmp_path: Path, undeclared):
    sae, source = ap.SAEConfig(d_in=24, d_sae=96, allocator=undeclared), ap.TensorSource(inputs(4000))
    with pytest.raises(InvalidConfig, match=r"add 'sparsity' .* `penalised: ClassVar\[bool\] = True`"):
        ap.train({"r": ap.RunConfig(sae=sae)}, source, tmp_path / "a")
    priced = ap.RunConfig(sae=sae, objectives=(ReconstructionConfig(), SparsityConfig()))
    with pytest.raises(InvalidConfig, match=r"leave that .* `penalised: ClassVar\[bool\] = True`"):
        ap.train({"r": priced}, source, tmp_path / "b")


def led(config, n_steps):
    """L0 at every step of a training, and the run."""
    run, generator = Run(config, torch.zeros(24)), torch.Generator().manual_seed(1)
    counts = []
    for step in range(n_steps):
        result = train_step(run, tokens(128, generator), Clock(step, n_steps, 128 * step))
        counts.append(result.trace.code.nnz / 128)
    return torch.tensor(counts), run


@pytest.mark.parametrize("k", [4.0, 6.0, 12.0])
@pytest.mark.parametrize("recipe", ["relu_l1", "p_anneal", "jump_relu", "gated"])
def test_training_ends_at_k_and_stays_there(recipe, k):
    n_steps = 2000
    counts, run = led(find_recipe(recipe).make(24, 96, k, 0), n_steps)
    last = counts[-n_steps // 10 :]
    # An eighth of all features is much for a penalty whose exponent falls: it ends at 0.988 k.
    assert (0.98 if (recipe, k) == ("p_anneal", 12.0) else 0.99) < float(last.mean()) / k < 1.03
    fresh = tokens(2048, torch.Generator().manual_seed(2))
    noise = run.sae.trace(fresh, Clock(n_steps - 1, n_steps)).code.counts().double().std() / math.sqrt(128)
    assert float(last.double().std()) < 1.25 * float(noise), "L0 moves by more than a batch of 128 explains"
    (report,) = [one.report() for one in run.losses if one.name == "sparsity"]
    assert report["price"] > 0 and report["l0"] == pytest.approx(k, rel=0.1)
    assert report["k"] == k and report["at_bound"] is False


def test_thresholds_that_start_too_high_end_at_k():
    config = find_recipe("jump_relu").make(24, 96, 12.0, 0)
    config = adjusted(config, "jump_relu", ["jump_relu.allocator.theta=0.8"], ["jump_relu"])
    counts, _ = led(config, 2000)
    assert float(counts[0]) < 12.0
    assert 0.99 < float(counts[-200:].mean()) / 12 < 1.03


@pytest.mark.parametrize("rule", RULES)
def test_nested_prefixes_over_a_priced_rule_end_at_k(rule):
    counts, _ = led(over(rule), 1000)
    assert float(counts[-100:].mean()) / 6 == pytest.approx(1, abs=0.05)


def test_a_price_survives_a_checkpoint_to_the_bit():
    config = find_recipe("gated").make(24, 96, 6.0, 0)

    def go(run, begin, end):
        for step in range(begin, end):
            train_step(run, tokens(64, torch.Generator().manual_seed(step)), Clock(step, 12, 64 * step))

    straight, first, second = (Run(config, torch.zeros(24)) for _ in range(3))
    go(straight, 0, 12)
    go(first, 0, 6)
    restore_run(second, {name: value.clone() for name, value in run_tensors(first).items()}, "memory")
    go(second, 6, 12)
    want, got = run_tensors(straight), run_tensors(second)
    assert want.keys() == got.keys() and any(name.startswith("objectives.") for name in want)
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize(
    ("recipe", "least"), [("relu_l1", 0.9), ("p_anneal", 0.9), ("gated", 0.9), ("jump_relu", 0.7)]
)
def test_a_short_run_takes_its_time_and_ends_near_k(recipe, least):
    """Led in a fifth of 150 steps, L0 fell to a thirtieth of k, or of jump_relu to 0.65 k, and stayed there."""
    counts, _ = led(find_recipe(recipe).make(24, 96, 8, 0), 150)
    assert least < float(counts[-15:].mean()) / 8 < 1.1
    assert float(counts.min()) / 8 > least - 0.1


def test_a_run_that_is_long_enough_is_led_as_its_config_says():
    objective = SparsityConfig().build()
    assert [objective.reach(n) for n in (485, 488, 5000)] == [0.2] * 3
    assert objective.reach(150) == pytest.approx(97 / 150) and objective.reach(10) == 0.65
    gains = [objective._caution(Clock(9, n)) for n in (10, 242, 291, 485, 488, 5000)]
    assert gains == pytest.approx([0.5, 0.5, 0.6, 1, 1, 1]) and gains[-3:] == [1, 1, 1]
