"""``Code`` is its dense matrix, stored sparsely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.code import Code
from apportion.errors import InvalidInput


def dense(n: int, d_sae: int, share: float, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, d_sae, generator=g) * (torch.rand(n, d_sae, generator=g) < share)


@given(st.integers(0, 9), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_dense_and_back(n, d_sae, share, seed):
    z = dense(n, d_sae, share, seed)
    code = Code.from_dense(z)
    assert torch.equal(code.to_dense(), z)
    assert torch.equal(code.counts(), (z > 0).sum(1))
    assert code.nnz == int((z > 0).sum())
    assert torch.equal(code.rows, (z > 0).nonzero()[:, 0])


def test_leading_shape():
    z = dense(24, 7, 0.5, 0).reshape(2, 3, 4, 7)
    code = Code.from_dense(z)
    assert code.shape == (2, 3, 4) and code.counts().shape == (2, 3, 4)
    assert torch.equal(code.to_dense(), z)
    with pytest.raises(InvalidInput, match="24 tokens"):
        code.reshape((5, 5))


def test_zeros_are_entries_but_not_counted():
    code = Code.from_pairs(torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0]), torch.tensor([0.0, 2.0, 0.0]), 3, 4)
    assert code.nnz == 1 and code.counts().tolist() == [1, 0, 0] and len(code.indices) == 3


def test_restrict_keeps_chosen_features_and_their_numbers():
    z = dense(6, 10, 0.7, 1).reshape(2, 3, 10)
    kept = Code.from_dense(z).restrict([7, 2])
    want = torch.zeros_like(z)
    want[..., [2, 7]] = z[..., [2, 7]]
    assert torch.equal(kept.to_dense(), want) and kept.shape == (2, 3)
    with pytest.raises(InvalidInput, match="outside 0 to 9"):
        Code.from_dense(z).restrict([10])


def test_bands_hold_the_entries_of_their_features_in_order():
    z = dense(6, 10, 0.4, 2).reshape(2, 3, 10)
    split = Code.from_dense(z).in_bands(torch.tensor([1, 4, 10]))
    assert split.shape == (2, 3, 3) and split.d_sae == 10
    want = torch.zeros(2, 3, 3, 10)
    for band, (low, high) in enumerate([(0, 1), (1, 4), (4, 10)]):
        want[:, :, band, low:high] = z[..., low:high]
    assert torch.equal(split.to_dense(), want)
    assert torch.equal(split.values, Code.from_dense(z).values)


def test_restrict_takes_a_mask_and_no_other_type():
    z = dense(6, 10, 0.7, 1)
    mask = torch.zeros(10, dtype=torch.bool)
    mask[[2, 7]] = True
    assert torch.equal(Code.from_dense(z).restrict(mask).to_dense(), z * mask)
    for bad in (mask[:5], torch.tensor([1.0])):
        with pytest.raises(InvalidInput, match="pass integers"):
            Code.from_dense(z).restrict(bad)


def test_to_dense_is_differentiable():
    values = torch.ones(2, requires_grad=True)
    code = Code.from_pairs(torch.tensor([0, 1]), torch.tensor([2, 0]), values, 2, 3)
    (code.to_dense() * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert values.grad.tolist() == [2.0, 3.0]
