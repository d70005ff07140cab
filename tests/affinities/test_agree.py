"""Every implementation of ``Affinities`` gives the answers of the dense one: pairs, values and gradients."""

from __future__ import annotations

import pytest
import torch

from apportion.affinities import (
    Affinities,
    ChunkedAffinities,
    DenseAffinities,
    Everything,
    Pairs,
    ScreenedAffinities,
)
from apportion.errors import InvalidInput
from apportion.ops.soft_top_k import SoftPairs
from apportion.trace import Dictionary

N, D_IN, D_SAE = 30, 8, 60
CHUNKS = (1, 7, 60, 1000)


def problem(seed: int, d_sae: int = D_SAE) -> tuple[torch.Tensor, Dictionary]:
    """Small numbers, so that products are exact and full of ties, zeros and negatives; and twins."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (N, D_IN), generator=g).float()
    x[7], x[8] = x[3], 0.0
    weight = torch.randint(-2, 3, (d_sae, D_IN), generator=g).float() / 2
    weight[d_sae // 2] = weight[1]
    weight[-1] = weight[0]
    b_enc = torch.randint(-3, 2, (d_sae,), generator=g).float() / 2
    b_enc[d_sae // 2], b_enc[-1] = b_enc[1], b_enc[0]
    b_dec = torch.randint(-1, 2, (D_IN,), generator=g).float()
    leaves = [t.requires_grad_() for t in (weight, b_enc, torch.zeros_like(weight), b_dec)]
    return x.requires_grad_(), Dictionary(*leaves)


def dense_of(x: torch.Tensor, d: Dictionary) -> DenseAffinities:
    centred = (x - d.b_dec).detach()
    return DenseAffinities(x, centred, (centred @ d.weight.T + d.b_enc).detach(), d)


def chunked_of(x: torch.Tensor, d: Dictionary, chunk: int) -> ChunkedAffinities:
    return ChunkedAffinities(x, (x - d.b_dec).detach(), d, chunk=chunk)


def screened_of(x: torch.Tensor, d: Dictionary) -> ScreenedAffinities:
    return ScreenedAffinities(x, (x - d.b_dec).detach(), d)


def gradients(pre: Affinities, pairs: Pairs | Everything, x: torch.Tensor, d: Dictionary) -> list[torch.Tensor]:
    values = pre.at(pairs)
    weights = torch.linspace(-1, 2, values.numel()).reshape(values.shape)
    found = torch.autograd.grad((values * weights).sum(), [x, d.weight, d.b_enc, d.b_dec], allow_unused=True)
    return [values.detach(), *(torch.zeros(()) if g is None else g for g in found)]


K = torch.arange(N) % 9
GENERATOR = torch.Generator().manual_seed(5)
THETA = torch.randint(-2, 4, (D_SAE,), generator=GENERATOR).float() / 2
QUOTA = torch.arange(D_SAE) % 7
GAIN = torch.randint(0, 4, (D_SAE,), generator=GENERATOR).float() / 2
QUESTIONS = {
    "top_rows": lambda a: a.top_rows(K),
    "top_rows, all": lambda a: a.top_rows(torch.full((a.n,), D_SAE)),
    "top_rows, none": lambda a: a.top_rows(torch.zeros(a.n, dtype=torch.int64)),
    "top_gained": lambda a: a.top_gained(K, GAIN),
    "top_batch, 0": lambda a: a.top_batch(0),
    "top_batch, 1": lambda a: a.top_batch(1),
    "top_batch, 77": lambda a: a.top_batch(77),
    "top_batch, all": lambda a: a.top_batch(N * D_SAE),
    "top_columns": lambda a: a.top_columns(QUOTA),
    "above": lambda a: a.above(1.0),
    "above, own": lambda a: a.above(THETA),
    "above, below zero": lambda a: a.above(-3.0),
    "near": lambda a: a.near(0.5, 1.5),
    "near, own": lambda a: a.near(THETA, 1.0),
    "fired, few": lambda a: a.fired(9.0),
    "fired, many": lambda a: a.fired(-1.0),
    "soft_rows": lambda a: a.soft_rows(K + 0.5, 0.3, 1e-3),
}


def same_answers(one: Affinities, two: Affinities, x: torch.Tensor, d: Dictionary, question: str) -> None:
    ours, theirs = (QUESTIONS[question](a) for a in (one, two))
    if isinstance(theirs, SoftPairs):
        for mine, other in zip(ours.threshold, theirs.threshold, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(mine, other)
        ours, theirs = ours.pairs, theirs.pairs
    assert type(ours) is type(theirs)
    if isinstance(theirs, Pairs):
        assert torch.equal(torch.stack(ours), torch.stack(theirs))
    for mine, other in zip(gradients(one, ours, x, d), gradients(two, theirs, x, d), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_chunked_answers_as_dense(question, chunk):
    for seed in (0, 1):
        x, d = problem(seed)
        same_answers(chunked_of(x, d, chunk), dense_of(x, d), x, d, question)


@pytest.mark.parametrize("question", QUESTIONS)
def test_screened_answers_as_dense(question):
    for seed in (0, 1):
        x, d = problem(seed)
        same_answers(screened_of(x, d), dense_of(x, d), x, d, question)
        rows, features = torch.arange(N).flip(0), torch.arange(0, D_SAE, 3)
        if question != "soft_rows":
            ours, theirs = (a.narrow(rows, features) for a in (screened_of(x, d), dense_of(x, d)))
            same_answers(ours, theirs, x, d, question)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_all_give_the_numbers_of_dense(chunk):
    x, d = problem(2)
    for ours in (chunked_of(x, d, chunk), screened_of(x, d)):
        same_numbers(ours, dense_of(x, d))


def same_numbers(ours: Affinities, theirs: Affinities) -> None:
    for every in (1, 4):
        torch.testing.assert_close(ours.means(every), theirs.means(every))
    torch.testing.assert_close(ours.peaks(), theirs.peaks())
    torch.testing.assert_close(ours.dense(), theirs.dense())
    assert ours.biases() is theirs.biases()
    weight = torch.linspace(-1, 1, D_SAE, requires_grad=True)
    sides = [a.weigh(weight) for a in (ours, theirs)]
    torch.testing.assert_close(*sides)
    grads = [torch.autograd.grad((side * torch.linspace(1, 3, N)).sum(), weight)[0] for side in sides]
    torch.testing.assert_close(*grads)
    for arguments in ((5,), (D_SAE,), (9, THETA), (4, THETA, THETA.flip(0)), (D_SAE + 3, None, THETA)):
        for mine, other in zip(ours.ordered(*arguments), theirs.ordered(*arguments), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("question", [q for q in QUESTIONS if q not in ("soft_rows",)])
def test_narrowed_chunked_answers_as_narrowed_dense(question, chunk):
    x, d = problem(3)
    rows, features = torch.arange(N).flip(0), torch.arange(0, D_SAE, 3)
    ours, theirs = (a.narrow(rows, features) for a in (chunked_of(x, d, chunk), dense_of(x, d)))
    same_answers(ours, theirs, x, d, question)
    torch.testing.assert_close(ours.dense(), theirs.dense())
    with pytest.raises(InvalidInput):
        ours.narrow(rows, features)


def test_pairs_in_any_order_may_be_asked_for():
    x, d = problem(4)
    pairs = Pairs(torch.tensor([5, 2, 5, 29, 2]), torch.tensor([3, 59, 3, 0, 1]))
    for mine, other in zip(
        gradients(chunked_of(x, d, 7), pairs, x, d), gradients(dense_of(x, d), pairs, x, d), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_no_rows_give_no_answers():
    x, d = problem(0)
    ours, theirs = chunked_of(x[:0], d, 7), dense_of(x[:0], d)
    assert len(ours.above(0.0).rows) == len(ours.top_batch(5).rows) == 0
    assert len(ours.top_rows(torch.zeros(0, dtype=torch.int64)).rows) == 0
    assert torch.equal(ours.peaks(), theirs.peaks()) and torch.equal(ours.means(), theirs.means())


def test_values_of_other_pairs_than_the_last_are_computed():
    x, d = problem(5)
    for ours in (chunked_of(x, d, 7), screened_of(x, d)):
        first = ours.top_rows(K)
        ours.top_rows(K * 2)
        torch.testing.assert_close(ours.at(first), dense_of(x, d).at(first))
