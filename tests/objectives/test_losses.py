"""Reconstruction and aux-k against the dense formulas in float64, gradients included."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import MutualChoiceConfig, TokenChoiceConfig
from apportion.firing import Firing
from apportion.objectives import AuxKConfig, ReconstructionConfig, residual

from ..conftest import inputs, make_sae


def setting(dead: list[int], config=None):
    sae = make_sae(config or TokenChoiceConfig.for_k(4), dtype=torch.float64)
    firing = Firing(sae.d_sae, dead_after=10)
    firing.age[dead] = 10
    x = inputs(30, dtype=torch.float64)
    return sae, firing, x, sae.trace(x)


def dense_aux_k(sae, x, trace, dead, k_aux, rows, weight):
    """The definition, with every dead affinity as a dense column."""
    e = (trace.x - trace.x_hat).detach()[rows]
    a = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc)[rows][:, dead]
    kept = torch.zeros_like(a).scatter_(1, a.topk(min(k_aux, len(dead)), dim=1).indices, 1.0)
    e_hat = (a * kept) @ sae.W_dec[dead]
    return weight * (e - e_hat).square().sum(1).mean() / (e - e.mean(0)).square().sum(1).mean()


@pytest.mark.parametrize("few", [0, 1000], ids=["by pairs", "by matrices"])
@pytest.mark.parametrize("rule", [TokenChoiceConfig, MutualChoiceConfig])
@pytest.mark.parametrize(("k_aux", "share", "n_rows"), [(5, 1.0, 30), (None, 0.25, 8), (100, 0.7, 21)])
def test_aux_k_is_its_definition(rule, k_aux, share, n_rows, few, monkeypatch):
    monkeypatch.setattr(residual, "_FEW", few)
    dead = [0, 7, 8, 20, 50, 51, 52, 90, 91, 95]
    sae, firing, x, trace = setting(dead, rule.for_k(4))
    loss = AuxKConfig(k_aux=k_aux, rows=share).build()(trace, sae.dictionary(), firing)
    want = dense_aux_k(sae, x, trace, dead, k_aux or 12, torch.arange(n_rows) * 30 // n_rows, 1 / 32)
    torch.testing.assert_close(loss, want)
    leaves = [sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]
    got = torch.autograd.grad(loss, leaves, retain_graph=True)
    for g, w in zip(got, torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
    living = torch.ones(96, dtype=torch.bool)
    living[dead] = False
    assert got[0][living].abs().sum() == 0 and got[2][living].abs().sum() == 0


@pytest.mark.parametrize("few", [0, 1000], ids=["by pairs", "by matrices"])
def test_aux_k_adds_into_the_buffers_of_a_step(few, monkeypatch):
    monkeypatch.setattr(residual, "_FEW", few)
    sae, firing, _, trace = setting([0, 7, 50, 95])
    leaves = [sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]
    want = torch.autograd.grad(AuxKConfig(k_aux=2).build()(trace, sae.dictionary(), firing), leaves)
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    AuxKConfig(k_aux=2).build()(trace, sae.dictionary(accumulate=True), firing).backward()
    for leaf, gradient in zip(leaves, want, strict=True):
        torch.testing.assert_close(leaf.grad, 1 + gradient, rtol=1e-10, atol=1e-12)


def test_aux_k_is_absent_without_dead_features_or_without_spread():
    sae, firing, _, trace = setting([])
    assert AuxKConfig().build()(trace, sae.dictionary(), firing) is None
    firing.age[3] = 10
    constant = sae.trace(torch.ones(8, 24, dtype=torch.float64))
    assert AuxKConfig().build()(constant, sae.dictionary(), firing) is None


def test_a_silent_dead_feature_gets_nothing():
    sae, firing, x, _ = setting([4])
    with torch.no_grad():
        sae.encoder.bias[4] = -1e3
    trace = sae.trace(x)
    loss = AuxKConfig(rows=1.0).build()(trace, sae.dictionary(), firing)
    e = (x - trace.x_hat).detach()
    torch.testing.assert_close(loss * 32, e.square().sum() / (e - e.mean(0)).square().sum())
    assert torch.autograd.grad(loss, sae.encoder.bias, allow_unused=True)[0].abs().sum() == 0


def test_reconstruction_is_summed_over_dimensions_and_averaged_over_tokens():
    sae, firing, x, trace = setting([])
    loss = ReconstructionConfig(weight=0.5).build()(trace, sae.dictionary(), firing)
    torch.testing.assert_close(loss, 0.5 * ((x - trace.x_hat) ** 2).sum() / 30)
