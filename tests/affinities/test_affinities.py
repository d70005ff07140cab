"""Affinities answer questions; narrowed ones answer for some rows and features; both versions agree."""

from __future__ import annotations

import pytest
import torch

from apportion.affinities import DenseAffinities, Pairs, SettledAffinities
from apportion.allocators import TokenChoiceConfig
from apportion.errors import InvalidInput, NonFiniteActivations

from ..conftest import inputs, make_sae


def both(n: int = 40):
    sae, x = make_sae(TokenChoiceConfig.for_k(4)), inputs(n)
    dictionary = sae.dictionary()
    centred = (x - sae.b_dec).detach()
    pre = torch.addmm(sae.b_enc, centred, sae.encoder.weight.T).detach()
    return sae, x, pre, [kind(x, centred, pre, dictionary) for kind in (DenseAffinities, SettledAffinities)]


def test_settled_and_plain_agree_where_nothing_is_close():
    _, _, pre, (plain, settled) = both()
    k = torch.arange(40) % 7
    for question in (
        lambda a: a.top_rows(k),
        lambda a: a.above(0.7),
        lambda a: a.above(torch.rand(96, generator=torch.Generator().manual_seed(0))),
    ):
        assert torch.equal(torch.stack(question(plain)), torch.stack(question(settled)))
    assert torch.equal(torch.stack(plain.above(-5.0)), (pre > 0).nonzero().T)


def test_near_finds_the_whole_window_negative_values_too():
    _, _, pre, (plain, _) = both()
    for theta in (0.1, 1.0, torch.linspace(0, 2, 96)):
        want = ((pre > theta - 0.25) & (pre < theta + 0.25)).nonzero().T
        assert torch.equal(torch.stack(plain.near(theta, 0.5)), want)
    assert bool((pre[tuple(plain.near(0.1, 0.5))] < 0).any())


@pytest.mark.parametrize("which", [0, 1])
def test_narrow_answers_for_its_rows_and_features_only(which):
    sae, _, pre, versions = both()
    rows, features = torch.tensor([3, 0, 17]), torch.tensor([1, 5, 40, 41, 95])
    part = versions[which].narrow(rows, features)
    block = torch.full((3, 96), -1.0)
    block[:, features] = pre[rows][:, features]
    want = torch.zeros(3, 96, dtype=torch.bool).scatter_(1, block.topk(2).indices, True) & (block > 0)
    assert torch.equal(torch.stack(part.top_rows(torch.full((3,), 2))), want.nonzero().T)
    assert torch.equal(torch.stack(part.above(0.3)), (block > 0.3).nonzero().T)
    pairs = part.above(0.0)
    torch.testing.assert_close(part.at(pairs), block[tuple(pairs)])
    grad = torch.autograd.grad(part.at(pairs).sum(), sae.encoder.bias)[0]
    assert set(grad.nonzero().squeeze(1).tolist()) == set(pairs.features.tolist()) <= set(features.tolist())
    assert torch.equal(part.dense() > 0, block > 0)
    with pytest.raises(InvalidInput):
        part.narrow(rows[:1], features)
    shift = torch.linspace(0, 3, 96)
    ordered = part.ordered(96, shift)
    for row, (names, values) in enumerate(zip(*ordered, strict=True)):
        score = {f: float(block[row, f] - shift[f]) for f in features.tolist() if block[row, f] > 0}
        assert names[: len(score)].tolist() == sorted(score, key=lambda f: -score[f])
        assert torch.equal(values[: len(score)], block[row, names[: len(score)]])
        assert not values[len(score) :].any()


def test_activations_that_are_not_finite_are_refused_by_row():
    sae, x = make_sae(TokenChoiceConfig.for_k(4)), inputs(9)
    x[5, 2] = float("nan")
    with pytest.raises(NonFiniteActivations, match="row 5"):
        sae.encode(x)


def test_read_is_encode_and_decode_with_the_affinities_behind_them():
    sae, x = make_sae(TokenChoiceConfig.for_k(4)), inputs(30)
    for rows in (x, x.half()):
        trace, code = sae.read(rows), sae.encode(rows)
        assert torch.equal(trace.code.to_dense(), code.to_dense())
        assert torch.equal(trace.x_hat, sae.decode(code))
        assert torch.equal(trace.pre.at(Pairs(code.rows, code.indices)), code.values)


def test_a_large_k_is_rounded_exactly_whatever_the_default_type():
    sae, x = make_sae(TokenChoiceConfig.for_k(257), d_sae=300), inputs(3)
    with torch.no_grad():
        sae.encoder.bias.fill_(100.0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert sae.encode(x).counts().tolist() == [257] * 3
        assert make_sae(TokenChoiceConfig.for_k(4)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_no_tensor_or_no_code_is_one_sentence():
    sae = make_sae(TokenChoiceConfig.for_k(4))
    with pytest.raises(InvalidInput, match="ndarray; pass a tensor"):
        sae.encode(inputs(3).numpy())
    with pytest.raises(InvalidInput, match="is no Code"):
        sae.decode(sae.encode(inputs(3)).to_dense())


def test_a_wrong_width_is_one_sentence():
    sae = make_sae(TokenChoiceConfig.for_k(4))
    for bad in (torch.zeros(3, 25), torch.zeros(3, 24, dtype=torch.int64), torch.zeros(())):
        with pytest.raises(InvalidInput, match="do not fit this SAE"):
            sae.encode(bad)
