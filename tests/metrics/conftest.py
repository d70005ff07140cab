"""Odd-sized activations with a code, and their dense form for naive references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from apportion.code import Code
from apportion.metrics import MetricBatch

MakeBatch = Callable[..., tuple[MetricBatch, Tensor]]


@pytest.fixture
def make_batch() -> MakeBatch:
    """``make_batch(n, d, features, seed)``: a batch of that size and its dense code [n, features]."""

    def make(n: int = 117, d: int = 7, features: int = 13, seed: int = 0) -> tuple[MetricBatch, Tensor]:
        gen = torch.Generator().manual_seed(seed)
        x = torch.randn(n, d, generator=gen)
        x_hat = x + 0.3 * torch.randn(n, d, generator=gen)
        z = torch.randn(n, features, generator=gen).relu()
        z[:, :2] = 0  # these never fire
        document = torch.randint(0, 9, (n,), generator=gen)
        return MetricBatch(x, x_hat, Code.from_dense(z), document), z

    return make


@pytest.fixture
def cut() -> Callable[[MetricBatch, Tensor, list[int]], list[MetricBatch]]:
    """The batch in pieces of the given sizes."""

    def pieces(batch: MetricBatch, z: Tensor, sizes: list[int]) -> list[MetricBatch]:
        assert batch.document is not None
        parts = zip(*(t.split(sizes) for t in (batch.x, batch.x_hat, z, batch.document)), strict=True)
        return [MetricBatch(x, x_hat, Code.from_dense(part), doc) for x, x_hat, part, doc in parts]

    return pieces
