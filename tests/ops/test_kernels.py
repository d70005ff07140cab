"""Sparse decoder and encoder against autograd of the dense formula, in float64, every gradient."""

from __future__ import annotations

import pytest
import torch

from apportion.code import Code
from apportion.ops.decode import decode, decode_reference
from apportion.ops.encode_at import encode_at, encode_at_reference
from apportion.ops.spmm import add_spmm, group_by

CASES = {
    "odd sizes": (7, 13, 31, 0.3),
    "one token": (1, 5, 9, 0.5),
    "some rows empty": (11, 3, 17, 0.06),
    "whole batch at L0 = 0": (6, 4, 8, 0.0),
    "everything chosen": (5, 6, 7, 1.0),
}


def case(name: str):
    n, d_in, d_sae, density = CASES[name]
    g = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    mask = torch.rand(n, d_sae, generator=g) < density
    rows, features = mask.nonzero(as_tuple=True)
    return draw(n, d_in), draw(d_sae, d_in), draw(d_sae), draw(d_in), rows, features, g


def gradients(loss: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_decode_equals_dense(name):
    n, _, d_sae, _ = CASES[name]
    x, W_dec, _, b_dec, rows, features, g = case(name)
    values = torch.rand(len(rows), generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(x.shape, generator=g, dtype=torch.float64)
    code = Code.from_pairs(rows, features, values, n, d_sae)
    out = decode(code, W_dec, b_dec)
    want = decode_reference(code.to_dense(), W_dec, b_dec)
    assert_same([out], [want])
    leaves = [values, W_dec, b_dec]
    assert_same(gradients((out * weight).sum(), leaves), gradients((want * weight).sum(), leaves))


def test_decode_gives_zero_values_their_gradient():
    W_dec = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    values = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    code = Code.from_pairs(torch.tensor([0, 0]), torch.tensor([1, 3]), values, 1, 4)
    assert code.nnz == 0
    decode(code, W_dec, None).sum().backward()
    torch.testing.assert_close(values.grad, W_dec.detach()[[1, 3]].sum(1))


@pytest.mark.parametrize("given_values", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_encode_at_equals_dense(name, given_values):
    x, weight, b_enc, b_dec, rows, features, g = case(name)
    want = encode_at_reference(x, weight, b_enc, b_dec, rows, features)
    values = want.detach() if given_values else None
    got = encode_at(x, weight, b_enc, b_dec, rows, features, values=values)
    assert_same([got], [want])
    cotangent = torch.randn(len(rows), generator=g, dtype=torch.float64)
    leaves = [x, weight, b_enc, b_dec]
    assert_same(gradients((got * cotangent).sum(), leaves), gradients((want * cotangent).sum(), leaves))


def test_encode_at_takes_repeated_pairs_in_any_order():
    x, weight, b_enc, b_dec, *_ = case("odd sizes")
    rows, features = torch.tensor([3, 0, 3, 3, 6, 0]), torch.tensor([30, 2, 30, 1, 0, 2])
    cotangent = torch.arange(1.0, 7.0, dtype=torch.float64)
    leaves = [x, weight, b_enc, b_dec]
    got = encode_at(x, weight, b_enc, b_dec, rows, features)
    want = encode_at_reference(x, weight, b_enc, b_dec, rows, features)
    assert_same([got], [want])
    assert_same(gradients((got * cotangent).sum(), leaves), gradients((want * cotangent).sum(), leaves))


@pytest.mark.parametrize("kernel", ["decode", "encode_at"])
def test_gradients_can_be_added_into_a_buffer(kernel):
    x, weight, b_enc, b_dec, rows, features, g = case("odd sizes")
    buffer = torch.randn(weight.shape, generator=g, dtype=torch.float64)
    before = buffer.clone()
    if kernel == "decode":
        values = torch.rand(len(rows), generator=g, dtype=torch.float64)
        out = decode(Code.from_pairs(rows, features, values, *(len(x), len(weight))), weight, b_dec, buffer)
        want = decode(Code.from_pairs(rows, features, values, *(len(x), len(weight))), weight, b_dec)
    else:
        out = encode_at(x, weight, b_enc, b_dec, rows, features, into=buffer)
        want = encode_at(x, weight, b_enc, b_dec, rows, features)
    (expected,) = torch.autograd.grad(want.sin().sum(), [weight])
    out.sin().sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(buffer - before, expected)


@pytest.mark.parametrize("mkl", [True, False])
def test_sparse_product_adds_up_with_and_without_mkl(mkl, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    g = torch.Generator().manual_seed(0)
    keys, columns = torch.randint(0, 9, (40,), generator=g), torch.randint(0, 5, (40,), generator=g)
    values, dense = torch.randn(40, generator=g), torch.randn(5, 6, generator=g)
    out = torch.randn(9, 6, generator=g)
    want = out + torch.zeros(9, 5).index_put_((keys, columns), values, accumulate=True) @ dense
    grouped = group_by(keys, 9)
    add_spmm(out, grouped.offsets, columns[grouped.order], values[grouped.order], dense)
    torch.testing.assert_close(out, want)
