"""Fresh memory is zero, contiguous, and like what it was asked to be like."""

from __future__ import annotations

import pytest
import torch

from apportion.ops.fresh import fresh_like


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (5, 7), (1200, 1100)])
def test_fresh_memory_is_zero(dtype, shape):
    like = torch.ones(shape, dtype=dtype).T
    fresh = fresh_like(like)
    assert (fresh.shape, fresh.dtype, fresh.device) == (like.shape, dtype, like.device)
    assert fresh.is_contiguous()
    assert not fresh.any()
    fresh += 1
    assert not fresh_like(like).any()
