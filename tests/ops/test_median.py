"""The geometric median has the smallest total distance."""

from __future__ import annotations

import torch

from apportion.ops.median import geometric_median


def total_distance(x: torch.Tensor, centre: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x.double() - centre.double(), dim=1).sum())


def test_no_small_step_lowers_the_total_distance():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 7, generator=g) * torch.rand(500, 1, generator=g).exp() + 3
    centre = geometric_median(x)
    best = total_distance(x, centre)
    for step in torch.randn(50, 7, generator=g):
        assert total_distance(x, centre + 0.01 * step) > best


def test_outliers_hardly_move_it():
    x = torch.zeros(100, 3)
    x[:10] = 1e6
    assert torch.linalg.vector_norm(geometric_median(x)) < 1.0
