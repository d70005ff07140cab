"""SoftTopK against the dense soft top-k in float64, through the SAE."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import SoftTopKConfig, TokenChoiceConfig
from apportion.budgets import LearnedConfig
from apportion.clock import END, Clock
from apportion.ops.soft_top_k import soft_top_k
from apportion.schedules import Constant

from ..conftest import inputs, make_sae

EARLY = Clock(10, 100)


def soft(alpha=0.3, floor=1e-7, k=8.0, estimator="shared"):
    config = SoftTopKConfig(
        budget=LearnedConfig(k=k, estimator=estimator),
        alpha=Constant(value=alpha),
        floor=floor,
        through_rank=True,
    )
    sae = make_sae(config, dtype=torch.float64)
    scorer = sae.allocator.budget.scorer
    with torch.no_grad():
        (scorer.readout if estimator == "own" else scorer.weight).normal_(
            std=0.25, generator=torch.Generator().manual_seed(3)
        )
    return sae


def dense(sae, x, alpha):
    """The published forward pass, every affinity at once."""
    a = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    budget = sae.allocator.budget
    k = (16 * torch.sigmoid(budget.scorer(sae.trace(x, EARLY).pre, x) + budget.offset)).clamp(min=1)
    return soft_top_k(a, k, alpha) * a, k


@pytest.mark.parametrize("alpha", [0.003, 0.05, 0.3])
@pytest.mark.parametrize("estimator", ["shared", "linear", "own"])
def test_codes_and_gradients_are_those_of_the_dense_formula(alpha, estimator):
    sae, x = soft(alpha, estimator=estimator), inputs(30, dtype=torch.float64)
    weight = torch.randn(30, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    trace = sae.trace(x, EARLY)
    z, k = dense(sae, x, alpha)
    torch.testing.assert_close(trace.code.to_dense(), z, rtol=0, atol=3e-6)
    torch.testing.assert_close(trace.notes["k"].to(k.dtype), k)
    leaves = dict(sae.named_parameters())
    got = torch.autograd.grad((trace.x_hat * weight).sum(), list(leaves.values()))
    want = torch.autograd.grad(((z @ sae.W_dec + sae.b_dec) * weight).sum(), list(leaves.values()))
    for name, g, w in zip(leaves, got, want, strict=True):
        # What entries below the floor would add: see ops.soft_top_k.weights_at.
        far = (g.double() - w.double()).abs().max() / w.double().abs().max().clamp(min=1e-3)
        assert far < 1e-4, f"{name}: {far}"


def test_by_default_the_encoder_learns_from_values_alone_and_k_from_the_weights():
    sae, x = soft(0.1), inputs(30, dtype=torch.float64)
    sae.allocator.config = sae.allocator.config.model_copy(update={"through_rank": False})
    weight = torch.randn(30, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    a = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    budget = sae.allocator.budget
    k = (16 * torch.sigmoid(budget.scorer(sae.trace(x, EARLY).pre, x) + budget.offset)).clamp(min=1)
    z = soft_top_k(a.detach(), k, 0.1) * a
    leaves = list(sae.parameters())
    got = torch.autograd.grad((sae.trace(x, EARLY).x_hat * weight).sum(), leaves)
    want = torch.autograd.grad(((z @ sae.W_dec + sae.b_dec) * weight).sum(), leaves)
    for g, w in zip(got, want, strict=True):
        assert (g.double() - w.double()).abs().max() < 1e-4 * w.double().abs().max().clamp(min=1e-3)


def test_a_loss_that_is_not_finite_is_left_to_be_seen():
    sae = soft()
    with torch.no_grad():
        sae.allocator.budget.offset.fill_(float("nan"))
    trace = sae.trace(inputs(5, dtype=torch.float64), EARLY)
    assert torch.isnan(sae.allocator.terms(trace, sae.dictionary())["budget"])


def test_no_rows_give_an_empty_code():
    sae = soft()
    assert sae.trace(inputs(5, dtype=torch.float64)[:0], EARLY).code.nnz == 0


def test_the_code_is_sparse_and_misses_less_than_the_floor():
    sharp, x = soft(0.02, floor=1e-3), inputs(50, dtype=torch.float64)
    trace = sharp.trace(x, EARLY)
    z, k = dense(sharp, x, 0.02)
    missing = z - trace.code.to_dense()
    a = ((x - sharp.b_dec) @ sharp.W_enc + sharp.b_enc).relu()
    assert (missing >= -1e-9).all() and (missing <= 1e-3 * a + 1e-9).all()
    assert trace.code.counts().double().mean() < 1.5 * k.mean()


def test_the_last_stage_is_a_hard_top_k_whose_k_the_reconstruction_leaves_alone():
    sae, x = soft(), inputs(40, dtype=torch.float64)
    trace = sae.trace(x, Clock(95, 100))
    assert torch.equal(trace.code.counts(), trace.notes["k"].detach().round().long())
    (trace.x - trace.x_hat).square().sum().backward()
    assert sae.allocator.budget.offset.grad is None or sae.allocator.budget.offset.grad == 0
    assert sae.encoder.weight.grad.abs().sum() > 0


def test_the_soft_stage_teaches_k():
    sae, x = soft(), inputs(40, dtype=torch.float64)
    trace = sae.trace(x, EARLY)
    (trace.x - trace.x_hat).square().sum().backward()
    assert sae.allocator.budget.offset.grad.abs() > 0


def test_the_frozen_rule_is_the_hard_one():
    sae, x = soft(), inputs(60, dtype=torch.float64)
    assert torch.equal(sae.freeze().encode(x).indices, sae.trace(x, END).code.indices)
    assert isinstance(sae.freeze().config.allocator, TokenChoiceConfig)
