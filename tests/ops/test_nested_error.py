"""Errors of nested prefixes against the dense formula in float64, every gradient."""

from __future__ import annotations

import pytest
import torch

from apportion.code import Code, MatrixCode
from apportion.ops.nested_error import nested_error, nested_error_reference

D_IN, D_SAE = 5, 12
ENDS = {
    "whole": [12],
    "two": [4, 12],
    "five": [1, 3, 6, 7, 12],
    "every feature": list(range(1, 13)),
}
DENSITIES = {"usual": 0.4, "some rows empty": 0.08, "nothing": 0.0, "everything": 1.0}


def case(density: float, n: int = 9):
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    rows, features = (torch.rand(n, D_SAE, generator=g) < density).nonzero(as_tuple=True)
    values = torch.rand(len(rows), generator=g, dtype=torch.float64)
    values[::3] = 0.0  # entries that carry a gradient and no value
    values.requires_grad_()
    return draw(n, D_IN), Code.from_pairs(rows, features, values, n, D_SAE), draw(D_SAE, D_IN), draw(D_IN)


def gradients(loss, leaves):
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def as_matrix(code: Code) -> MatrixCode:
    return MatrixCode(code.detach().to_dense().requires_grad_())


@pytest.mark.parametrize("held", [lambda code: code, as_matrix], ids=["listed", "matrix"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("ends", ENDS)
def test_it_equals_dense(ends, density, held):
    x, code, W_dec, b_dec = case(DENSITIES[density])
    code = held(code)
    got = nested_error(x, code, W_dec, b_dec, torch.tensor(ENDS[ends]))
    want = nested_error_reference(x, code.to_dense(), W_dec, b_dec, ENDS[ends])
    torch.testing.assert_close(got, want)
    leaves = [x, code.values, W_dec, b_dec]
    # Twice, and of something that is not the error itself: nothing may be used up by the first backward pass.
    for function in (torch.sqrt, torch.log):
        for g, w in zip(gradients(function(got), leaves), gradients(function(want), leaves), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def test_a_band_without_entries_changes_no_error():
    x, code, W_dec, b_dec = case(0.5)
    early = Code.from_dense(code.restrict([0, 1]).to_dense())
    got = nested_error(x, early, W_dec, b_dec, torch.tensor([2, 7, 12]))
    torch.testing.assert_close(got, 3 * nested_error(x, early, W_dec, b_dec, torch.tensor([12])))


def test_no_tokens_have_no_error():
    x, code, W_dec, b_dec = case(0.5, n=0)
    error = nested_error(x, code, W_dec, b_dec, torch.tensor([2, 12]))
    assert error.item() == 0.0
    assert not torch.autograd.grad(error, W_dec)[0].any()


def test_the_caller_keeps_what_it_handed_in():
    x, code, W_dec, b_dec = case(0.5)
    before = [t.detach().clone() for t in (x, code.values, W_dec, b_dec)]
    nested_error(x, code, W_dec, b_dec, torch.tensor([2, 12])).backward()
    assert all(torch.equal(b, t) for b, t in zip(before, (x, code.values, W_dec, b_dec), strict=True))


def test_a_matrix_is_never_listed(monkeypatch):
    x, code, W_dec, b_dec = case(0.5)
    code = as_matrix(code)
    monkeypatch.setattr(MatrixCode, "in_bands", None)
    nested_error(x, code, W_dec, b_dec, torch.tensor([2, 5, 12])).backward()


@pytest.mark.parametrize("held", [lambda code: code, as_matrix], ids=["listed", "matrix"])
def test_gradients_can_be_added_into_a_buffer(held):
    x, code, W_dec, b_dec = case(0.5)
    code = held(code)
    ends = torch.tensor([2, 5, 12])
    (want,) = gradients(nested_error(x, code, W_dec, b_dec, ends), [W_dec])
    buffer = torch.ones_like(want)
    nested_error(x, code, W_dec, b_dec, ends, buffer).backward()
    assert W_dec.grad is None
    torch.testing.assert_close(buffer - 1, want)


def test_float32_loses_no_digits_over_many_rows():
    g = torch.Generator().manual_seed(0)
    x, W_dec = torch.randn(4096, 128, generator=g), torch.randn(32, 128, generator=g)
    code = Code.from_dense(torch.rand(4096, 32, generator=g))
    ends, b_dec = torch.tensor([4, 32]), torch.zeros(128)
    got = nested_error(x, code, W_dec, b_dec, ends)
    want = nested_error_reference(x.double(), code.to_dense().double(), W_dec.double(), b_dec.double(), [4, 32])
    assert float(got) == pytest.approx(float(want), rel=1e-5)
