"""The dense ways through encoder and decoder: what ``at`` gives where everything is above zero."""

from __future__ import annotations

import pytest
import torch

from apportion.affinities import DenseAffinities, Everything, Pairs
from apportion.allocators import TokenChoiceConfig
from apportion.allocators.base import code_of
from apportion.code import Code, MatrixCode

from ..conftest import inputs, make_sae


def affinities(x, sae, accumulate=False):
    with torch.no_grad():
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    return DenseAffinities(x, (x - sae.b_dec).detach(), pre, sae.dictionary(accumulate=accumulate))


def through(pre, pairs, sae, accumulate=False):
    """A loss of the values that are above zero, and of what they decode to."""
    values = pre.at(pairs).relu()
    code = code_of(pre, pairs, values)
    x_hat = sae.dictionary(accumulate=accumulate).decode(code)
    return code, x_hat.square().sum() + (values**3).sum()


@pytest.mark.parametrize("accumulate", [False, True])
def test_everything_gives_the_gradients_of_the_pairs_above_zero(accumulate):
    sae = make_sae(TokenChoiceConfig.for_k(4), dtype=torch.float64)
    leaves = list(sae.parameters())
    found = []
    for listed in (True, False):
        for parameter in leaves:
            parameter.grad = torch.full_like(parameter, 0.5)
        x = inputs(30, dtype=torch.float64).requires_grad_()
        pre = affinities(x, sae, accumulate)
        pairs = pre.above(0.0) if listed else Everything(pre.n, pre.d_sae)
        code, loss = through(pre, pairs, sae, accumulate)
        loss.backward()
        assert isinstance(code, MatrixCode) is not listed
        found.append([loss.detach(), x.grad, *[parameter.grad for parameter in leaves]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_fired_lists_pairs_until_they_are_many():
    sae = make_sae(TokenChoiceConfig.for_k(4))
    x = inputs(200)
    pre = affinities(x, sae)
    assert isinstance(pre.fired(0.0), Everything)
    few = pre.fired(1e3)
    assert isinstance(few, Pairs) and len(few.rows) == 0
    bound = float(pre.dense().detach().flatten().topk(100).values[-1])
    listed = pre.fired(bound)
    assert isinstance(listed, Pairs) and len(listed.rows) == 99
    assert isinstance(pre.fired(torch.full((96,), bound)), Pairs)


def test_fired_looks_below_zero():
    sae = make_sae(TokenChoiceConfig.for_k(4))
    sae.encoder.bias.data.fill_(-1e3)
    pre = affinities(inputs(20), sae)
    theta = float(pre.at(Everything(pre.n, pre.d_sae)).detach().flatten().topk(6).values[-1])
    assert theta < 0 and len(pre.fired(theta).rows) == 5


def test_a_matrix_code_is_a_code():
    z = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) - 0.5
    z = z.clamp(min=0).reshape(2, 3, 10)
    plain, whole = Code.from_dense(z), MatrixCode(z.reshape(6, 10)).reshape((2, 3))
    assert whole.n == 6 and whole.nnz == plain.nnz and whole.shape == (2, 3)
    assert torch.equal(whole.counts(), plain.counts()) and torch.equal(whole.firings(), plain.firings())
    assert torch.equal(whole.to_dense(), z) and torch.equal(whole.detach().to_dense(), z)
    assert torch.equal(whole.restrict([1, 4]).to_dense(), plain.restrict([1, 4]).to_dense())
    listed = Code(whole.values, whole.indices, whole.offsets, 10, (6,))
    assert torch.equal(listed.to_dense().reshape(z.shape), z) and torch.equal(listed.rows, whole.rows)
    assert torch.equal(whole.with_values(2 * whole.values).to_dense(), 2 * z)
    with pytest.raises(Exception, match="do not fill"):
        whole.reshape((7,))
