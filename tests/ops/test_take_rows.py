"""Some rows of a parameter: their gradients reach the whole, into a buffer or as a tensor of its shape."""

from __future__ import annotations

import pytest
import torch

from apportion.ops.take_rows import take_rows


@pytest.mark.parametrize("shape", [(7, 3), (7,)])
def test_gradients_are_those_of_indexing(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    rows = torch.tensor([6, 0, 3])
    assert torch.equal(take_rows(weight, rows), weight[rows])
    (got,) = torch.autograd.grad((take_rows(weight, rows) ** 3).sum(), weight)
    (want,) = torch.autograd.grad((weight[rows] ** 3).sum(), weight)
    assert torch.equal(got, want)


def test_a_buffer_is_added_into_and_no_gradient_comes_back():
    weight = torch.ones(5, 2, requires_grad=True)
    buffer = torch.full((5, 2), 10.0)
    (2 * take_rows(weight, torch.tensor([1, 4]), buffer)).sum().backward()
    assert weight.grad is None
    assert buffer.tolist() == [[10, 10], [12, 12], [10, 10], [10, 10], [12, 12]]
