"""aux-zipf against its definition in float64, and aux-k as its end at tau = 0."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import AllocatorConfig, TokenChoiceConfig
from apportion.firing import Firing
from apportion.objectives import AuxKConfig, AuxZipfConfig
from apportion.objectives.aux_zipf import shortfall
from apportion.ops.zipf import fit_zipf, ranks

from ..conftest import inputs, make_sae

RULES = [rule for _, rule in sorted(AllocatorConfig.members.items()) if not rule.inference_only]


def setting(config, dead=(0, 7, 50, 91)):
    sae = make_sae(config, dtype=torch.float64)
    firing = Firing(sae.d_sae, dead_after=1000)
    generator = torch.Generator().manual_seed(2)
    firing.density.copy_(0.3 / (torch.randperm(96, generator=generator) + 2.0))
    firing.density[[3, 30, 60]] *= 0.05
    firing.age[list(dead)] = 1000
    firing.density[list(dead)] = 0
    x = inputs(30, dtype=torch.float64)
    return sae, firing, x, sae.trace(x)


def leaves_of(sae):
    return [sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]


def definition(sae, x, trace, u, k_aux, rows):
    """Every affinity as a dense matrix."""
    e = (trace.x - trace.x_hat).detach()[rows]
    wanted = u * torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc)[rows]
    kept = torch.zeros_like(wanted).scatter_(1, wanted.topk(k_aux, dim=1).indices, 1.0)
    e_hat = (wanted * kept) @ sae.W_dec
    return (e - e_hat).square().sum(1).mean() / (e - e.mean(0)).square().sum(1).mean() / 32


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("tau", "k_aux", "share"), [(0.5, 4, 1.0), (0.9, 12, 0.3), (3.0, 2, 1.0)])
def test_aux_zipf_is_its_definition(rule, tau, k_aux, share):
    sae, firing, x, trace = setting(rule.for_k(4))
    loss = AuxZipfConfig(tau=tau, k_aux=k_aux, rows=share).build()(trace, sae.dictionary(), firing)
    due = tau * fit_zipf(firing.density).at(ranks(firing.density))
    u = (1 - firing.density / due).clamp(min=0).float().double()
    n = round(share * 30)
    want = definition(sae, x, trace, u, min(k_aux, int((u > 0).sum())), torch.arange(n) * 30 // n)
    torch.testing.assert_close(loss, want)
    got = torch.autograd.grad(loss, leaves_of(sae), retain_graph=True)
    for g, w in zip(got, torch.autograd.grad(want, leaves_of(sae)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_at_tau_zero_it_is_aux_k(rule):
    sae, firing, _, trace = setting(rule.for_k(4))
    zipf = AuxZipfConfig(tau=0).build()(trace, sae.dictionary(), firing)
    aux_k = AuxKConfig().build()(trace, sae.dictionary(), firing)
    assert torch.equal(zipf, aux_k)
    for a, b in zip(
        torch.autograd.grad(zipf, leaves_of(sae), retain_graph=True),
        torch.autograd.grad(aux_k, leaves_of(sae)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_the_shortfall_is_one_where_dead_and_falls_with_density():
    _, firing, _, _ = setting(TokenChoiceConfig.for_k(4))
    u = shortfall(firing, 0.5)
    assert (u[firing.dead()] == 1).all() and (u >= 0).all() and (u <= 1).all()
    assert (u[[3, 30, 60]] > 0).all(), "far below their place on the curve"
    assert (u[firing.density > 0.05] == 0).all(), "those that fire most do not lag behind"
    more = shortfall(firing, 1.0)
    assert (more >= u).all()


def test_absent_before_anything_has_fired_and_without_laggards():
    sae, firing, _, trace = setting(TokenChoiceConfig.for_k(4))
    fresh = Firing(96)
    assert AuxZipfConfig().build()(trace, sae.dictionary(), fresh) is None
    firing.age.zero_()
    firing.density.copy_(0.3 / (torch.arange(96) + 2.0))
    assert AuxZipfConfig().build()(trace, sae.dictionary(), firing) is None


def test_a_silent_feature_gets_nothing():
    sae, firing, x, _ = setting(TokenChoiceConfig.for_k(4))
    with torch.no_grad():
        sae.encoder.bias[7] = -1e3
    loss = AuxZipfConfig(rows=1.0, k_aux=96).build()(sae.trace(x), sae.dictionary(), firing)
    weight, bias, directions = torch.autograd.grad(loss, leaves_of(sae)[:3])
    assert weight[7].abs().sum() == bias[7] == directions[7].abs().sum() == 0
    assert weight[50].abs().sum() > 0
