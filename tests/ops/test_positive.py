"""Entries above zero are counted exactly, in any layout and at any size of block."""

from __future__ import annotations

import pytest
import torch

from apportion.code import MatrixCode
from apportion.ops import row_blocks
from apportion.ops.positive import positive_in_columns, positive_in_rows


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 5), (1000, 37), (3, 4000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3000, 1 << 20])
def test_as_summing_the_mask(shape, dtype, size, monkeypatch):
    monkeypatch.setattr(row_blocks, "_BYTES", size)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    z[::2] = z[::2].relu()
    if z.numel() > 10:
        z[0, :2] = torch.tensor([torch.nan, torch.inf])
    for one in (z, z.T.contiguous().T):
        assert torch.equal(positive_in_rows(one), (z > 0).sum(1))
        assert torch.equal(positive_in_columns(one), (z > 0).sum(0))


def test_sums_beyond_what_half_precision_holds():
    z = torch.ones(2, 70_000, dtype=torch.bfloat16)
    assert positive_in_rows(z).tolist() == [70_000, 70_000]
    assert positive_in_columns(z.T).tolist() == [70_000, 70_000]


def test_a_code_held_as_a_matrix_counts_so():
    z = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).relu()
    code = MatrixCode(z, (2, 3))
    assert code.nnz == int((z > 0).sum())
    assert torch.equal(code.firings(), (z > 0).sum(0))
    assert torch.equal(code.counts(), (z > 0).sum(1).reshape(2, 3))
