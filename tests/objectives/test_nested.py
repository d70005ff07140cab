"""Losses over nested prefixes: the dense definition, which prefixes there are, and how they are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.allocators import (
    FeatureChoiceConfig,
    GatedConfig,
    JumpReLUConfig,
    MutualChoiceConfig,
    ReLUConfig,
    SoftTopKConfig,
    TokenChoiceConfig,
)
from apportion.code import MatrixCode
from apportion.errors import InvalidConfig
from apportion.firing import Firing
from apportion.objectives import NestedConfig, ReconstructionConfig, Sampled
from apportion.ops.nested_error import nested_error_reference

from ..conftest import inputs, make_sae
from ..training.training_kit import Stopped, Watched, config, settings, stop
from ..training.training_kit import source as kit_source

FIXED = NestedConfig(weight=0.3, prefixes=(0.05, 0.25, 0.5))
DRAWN = NestedConfig(prefixes=Sampled(n=6))


def dense(objective, sae, x, trace, ends):
    """The definition, with the code's share of every affinity held fixed."""
    affinity = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc)
    share = trace.code.detach().to_dense() / affinity.detach().clamp(min=1e-300)
    error = nested_error_reference(x, affinity * share, sae.W_dec, sae.b_dec, ends)
    return objective.weight * error / len(x)


@pytest.mark.parametrize("objective", [FIXED, DRAWN], ids=["fixed", "drawn"])
@pytest.mark.parametrize("rule", [TokenChoiceConfig, MutualChoiceConfig, FeatureChoiceConfig, SoftTopKConfig])
def test_it_is_its_definition_in_value_and_every_gradient(rule, objective):
    sae = make_sae(rule.for_k(4), dtype=torch.float64)
    x = inputs(30, dtype=torch.float64).requires_grad_()
    trace = sae.trace(x)
    torch.manual_seed(7)
    loss = objective.build()(trace, sae.dictionary(), Firing(96))
    torch.manual_seed(7)
    want = dense(objective, sae, x, trace, objective.ends(96).tolist())
    torch.testing.assert_close(loss, want)
    leaves = [x, sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]
    for got, expected in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert expected.any()
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("crowded", [True, False], ids=["matrix", "listed"])
@pytest.mark.parametrize("objective", [FIXED, DRAWN], ids=["fixed", "drawn"])
@pytest.mark.parametrize("rule", [ReLUConfig(k=4), JumpReLUConfig(k=4, theta=0.02, width=0.02), GatedConfig(k=4)])
def test_it_is_its_definition_over_rules_that_begin_with_a_matrix(rule, objective, crowded):
    sae = make_sae(rule, dtype=torch.float64)
    if not crowded:
        with torch.no_grad():
            sae.encoder.bias.sub_(3.5)
    trace = sae.trace(inputs(30, dtype=torch.float64))
    assert isinstance(trace.code, MatrixCode) is crowded and trace.code.nnz > 0
    torch.manual_seed(7)
    loss = objective.build()(trace, sae.dictionary(), Firing(96))
    torch.manual_seed(7)
    ends = objective.ends(96).tolist()
    error = nested_error_reference(trace.x, trace.code.to_dense(), sae.W_dec, sae.b_dec, ends)
    want = objective.weight * error / 30
    torch.testing.assert_close(loss, want)
    leaves = list(sae.parameters())
    found = [torch.autograd.grad(one, leaves, retain_graph=True, materialize_grads=True) for one in (loss, want)]
    assert sum(bool(gradient.any()) for gradient in found[1]) >= 4
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_the_whole_dictionary_alone_is_reconstruction():
    sae = make_sae(TokenChoiceConfig.for_k(4), dtype=torch.float64)
    trace = sae.trace(inputs(30, dtype=torch.float64))
    losses = [
        objective.build()(trace, sae.dictionary(), Firing(96))
        for objective in (NestedConfig(prefixes=()), NestedConfig(prefixes=(1,)), ReconstructionConfig())
    ]
    leaves = [sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]
    first, *others = [(loss, *torch.autograd.grad(loss, leaves, retain_graph=True)) for loss in losses]
    for other in others:
        for got, want in zip(other, first, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradients_go_into_the_buffers_of_a_training_step():
    sae = make_sae(TokenChoiceConfig.for_k(4), dtype=torch.float64)
    trace = sae.trace(inputs(30, dtype=torch.float64))
    leaves = [sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]
    want = torch.autograd.grad(FIXED.build()(trace, sae.dictionary(), Firing(96)), leaves)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    buffers = [leaf.grad for leaf in leaves]
    trace = sae.trace(inputs(30, dtype=torch.float64), accumulate=True)
    FIXED.build()(trace, sae.dictionary(accumulate=True), Firing(96)).backward()
    for leaf, buffer, expected in zip(leaves, buffers, want, strict=True):
        assert leaf.grad is buffer
        torch.testing.assert_close(buffer, expected)


@pytest.mark.parametrize(
    ("prefixes", "d_sae", "ends"),
    [
        ((1 / 32, 3 / 32, 7 / 32, 15 / 32, 1), 65_536, [2048, 6144, 14_336, 30_720, 65_536]),
        ((0.25, 0.5), 96, [24, 48, 96]),
        ((0.25, 0.5, 1.0), 96, [24, 48, 96]),
        ((2, 5, 64), 96, [2, 5, 64, 96]),
        ((2, 96), 96, [2, 96]),
        ((0.5, 64), 96, [48, 64, 96]),
        ((), 96, [96]),
    ],
)
def test_prefixes_are_shares_or_counts_and_end_with_all(prefixes, d_sae, ends):
    assert NestedConfig(prefixes=prefixes).ends(d_sae).tolist() == ends


def test_the_default_prefixes_are_the_papers():
    assert NestedConfig().ends(65_536).tolist() == [2048, 6144, 14_336, 30_720, 65_536]


@pytest.mark.parametrize("prefixes", [(0.5, 0.25), (0.5, 0.5), (8, 4), (4, 0.5), (0.0, 0.5), (-1,), (2.5,)])
def test_prefixes_that_make_no_sense_are_refused(prefixes):
    with pytest.raises(InvalidConfig, match=r"increase|neither a share"):
        NestedConfig(prefixes=prefixes)


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        ((4, 97), "97 features exceeds d_sae = 96"),
        ((0.001, 0.5), "prefixes of 0, 48, 96 features"),
        ((0.5, 0.501), "prefixes of 48, 48, 96"),
        (Sampled(n=97), "97 prefixes of 1 features or more cannot all differ where d_sae = 96"),
        (Sampled(n=3, least=95), "3 prefixes of 95"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused_before_a_training_begins(tmp_path: Path, prefixes, words):
    sae = ap.SAEConfig(d_in=24, d_sae=96, allocator=TokenChoiceConfig.for_k(4))
    run = ap.RunConfig(sae=sae, objectives=(NestedConfig(prefixes=prefixes),))
    with pytest.raises(InvalidConfig, match=words) as refusal:
        ap.train({"r": run}, ap.TensorSource(inputs(4000)), tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "train.json").exists() and not (tmp_path / "out" / "r").exists()


def test_drawn_prefixes_differ_ascend_and_end_with_all():
    torch.manual_seed(0)
    for sampled in (Sampled(), Sampled(n=2, power=1.5, least=40), Sampled(n=96), Sampled(n=2, least=95)):
        for _ in range(50):
            ends = sampled.draw(96)
            assert len(ends) == sampled.n and (ends.diff() > 0).all()
            assert int(ends[0]) >= sampled.least and int(ends[-1]) == 96
    assert Sampled(n=2, least=95).draw(96).tolist() == [95, 96]


def test_drawn_prefixes_follow_their_law():
    """With one inner prefix a draw, the share of draws up to s d_sae is s to the power."""
    torch.manual_seed(0)
    for power in (0.5, 1.0, 2.0):
        sampled = Sampled(n=2, power=power)
        drawn = torch.stack([sampled.draw(1000)[0] for _ in range(4000)]).double() / 1000
        for share in (0.04, 0.25, 0.7):
            assert float((drawn <= share).double().mean()) == pytest.approx(share**power, abs=0.03)


@pytest.mark.parametrize("power", [1e-12, 1e-3, 200.0, 1e5, 1e300])
def test_no_power_is_too_steep_to_draw_from(power):
    torch.manual_seed(0)
    for sampled in (Sampled(n=6, power=power), Sampled(n=96, power=power), Sampled(n=3, power=power, least=90)):
        ends = sampled.draw(96)
        assert len(ends) == sampled.n and (ends.diff() > 0).all()
        assert int(ends[0]) >= sampled.least and int(ends[-1]) == 96
    inner = [int(Sampled(n=2, power=power).draw(16_384)[0]) for _ in range(50)]
    if power >= 200:
        assert min(inner) > 15_000
    if power <= 1e-3:
        assert sorted(inner)[25] == 1


def test_draws_are_those_of_torch_from_the_same_law():
    """As they were before they were drawn in logarithms: trainings repeat."""
    for sampled in (Sampled(), Sampled(n=4, power=1.5, least=40)):
        weights = (torch.arange(96 - sampled.least + 1, dtype=torch.float64) ** sampled.power).diff()
        for seed in range(20):
            torch.manual_seed(seed)
            want = torch.multinomial(weights, sampled.n - 1).sort().values + sampled.least
            torch.manual_seed(seed)
            assert torch.equal(sampled.draw(96)[:-1], want)


def test_draws_belong_to_the_run_and_are_resumed_to_the_bit(tmp_path: Path):
    runs = {seed: config("mutual_choice", objectives=(DRAWN,), seed=int(seed)) for seed in ("1", "2")}
    together = ap.train(runs, kit_source(), tmp_path / "both", settings(12))
    with pytest.raises(Stopped):
        ap.train({"1": runs["1"]}, Watched(7, stop), tmp_path / "one", settings(12), checkpoint_seconds=0)
    torch.manual_seed(99)
    alone = ap.train({"1": runs["1"]}, kit_source(), tmp_path / "one", settings(12))
    for name, value in together["1"].state_dict().items():
        assert torch.equal(value, alone["1"].state_dict()[name]), name
    fixed = config("mutual_choice", objectives=(NestedConfig(prefixes=(3, 9)),), seed=1)
    other = ap.train({"1": fixed}, kit_source(), tmp_path / "fixed", settings(12))
    assert not torch.equal(other["1"].W_dec, alone["1"].W_dec)
