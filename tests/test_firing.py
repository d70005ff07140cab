"""Density and age of features."""

from __future__ import annotations

import torch

from apportion.code import Code
from apportion.firing import Firing


def batch(seed: int, n: int = 50) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 6, generator=g) * (
        torch.rand(n, 6, generator=g) < torch.tensor([0.0, 0.01, 0.1, 0.3, 0.6, 1])
    )


def test_density_is_the_mean_until_the_horizon_and_follows_after():
    firing, seen = Firing(6, horizon=500), []
    for step in range(10):
        seen.append(batch(step))
        firing.update(Code.from_dense(seen[-1]))
        torch.testing.assert_close(firing.density, (torch.cat(seen) > 0).float().mean(0))
    for _ in range(60):
        firing.update(Code.from_dense(torch.zeros(50, 6)))
    assert firing.density.max() < 0.01


def test_a_dead_feature_has_density_zero():
    firing = Firing(2, dead_after=100, horizon=10_000)
    firing.update(Code.from_dense(torch.tensor([[1.0, 1.0]])))
    for _ in range(4):
        firing.update(Code.from_dense(torch.tensor([[1.0, 0.0]]).repeat(25, 1)))
    assert firing.dead().tolist() == [False, True] and firing.density.tolist() == [1.0, 0.0]


def test_an_empty_batch_counts_nothing():
    firing = Firing(2)
    firing.update(Code.from_dense(torch.zeros(0, 2)))
    assert int(firing.tokens) == 0


def test_age_counts_tokens_since_a_feature_fired():
    firing = Firing(6, dead_after=120)
    for step in range(3):
        firing.update(Code.from_dense(batch(step)))
    assert firing.age[0] == 150 and firing.age[5] == 0 and int(firing.tokens) == 150
    assert firing.dead().tolist() == [True, firing.age[1] >= 120, False, False, False, False]
    revived = torch.zeros(4, 6)
    revived[2, 0] = 1e-30
    firing.update(Code.from_dense(revived))
    assert firing.age[0] == 0 and not firing.dead()[0]


def test_explicit_zeros_do_not_count_as_firing():
    firing = Firing(3)
    firing.update(Code.from_pairs(torch.tensor([0]), torch.tensor([1]), torch.zeros(1), 2, 3))
    assert firing.density.sum() == 0 and firing.age.tolist() == [2, 2, 2]
