"""Means, last rows and every so-many-th row of texts whose rows come in blocks."""

from __future__ import annotations

import torch

from apportion.activations.pooling import TextPools


def test_pools_are_those_of_the_rows_whatever_the_blocks():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    text = torch.repeat_interleave(torch.tensor([0, -1, 1, 3]), torch.tensor([30, 10, 41, 19]))
    for size in (1, 7, 100):
        pools = TextPools(5, 5, every=4)
        for first in range(0, 100, size):
            pools.add(x[first : first + size], text[first : first + size])
        for number in (0, 1, 3):
            own = x[text == number]
            torch.testing.assert_close(pools.mean[number], own.mean(0))
            assert torch.equal(pools.last[number], own[-1])
        assert pools.counts.tolist() == [30, 41, 0, 19, 0] and not pools.mean[2].any()
        rows, texts = pools.tokens
        assert torch.equal(rows, x[text >= 0][::4]) and torch.equal(texts, text[text >= 0][::4])
