"""Local dimension against its formula, on flat pieces of known dimension, and beside repeated activations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from apportion.errors import InvalidInput
from apportion.metrics import local_dimension


def flat(n: int, dimension: int, d_in: int = 20, seed: int = 0) -> Tensor:
    """Gaussian points of a plane of that dimension."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimension, generator=g) @ torch.randn(dimension, d_in, generator=g) + 3


def test_it_is_the_formula() -> None:
    x, points = flat(80, 4).double(), torch.tensor([5, 0, 79])
    for found, point in zip(local_dimension(x, points, 10).tolist(), points.tolist(), strict=True):
        distances = sorted(math.dist(x[point].tolist(), other.tolist()) for other in x)[1:11]
        logs = [math.log(distances[-1] / one) for one in distances[:-1]]
        assert found == pytest.approx(len(logs) / sum(logs))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_it_finds_the_dimension_of_a_plane_wherever_that_lies_and_however_large(dimension: int) -> None:
    x, points = flat(4000, dimension), torch.arange(300)
    found = local_dimension(x, points, 50)
    assert float(found.mean()) == pytest.approx(dimension, rel=0.1)
    torch.testing.assert_close(local_dimension(1000 * x, points, 50), found, rtol=1e-3, atol=0)
    torch.testing.assert_close(local_dimension(x.double() + 1e6, points, 50), found, rtol=1e-3, atol=0)


def test_a_wider_piece_has_more_than_a_narrow_one() -> None:
    x = torch.cat([flat(2000, 2), flat(2000, 8, seed=1) + 1000])
    found = local_dimension(x, torch.arange(0, 4000, 20), 30)
    assert float((found[100:] > found[:100].max()).double().mean()) > 0.9


def test_equal_activations_are_no_neighbours() -> None:
    x, point = flat(500, 3), torch.tensor([7])
    again = torch.cat([x, x[7].repeat(30, 1)])
    torch.testing.assert_close(local_dimension(again, point, 20), local_dimension(x, point, 20))
    assert bool(local_dimension(x[:1].repeat(50, 1), torch.arange(3), 5).isnan().all())


def test_refusals() -> None:
    for neighbours in (2, 10, 99):
        with pytest.raises(InvalidInput, match=f"{neighbours} neighbours were asked for among 10"):
            local_dimension(flat(10, 2), torch.arange(2), neighbours)
    assert local_dimension(flat(10, 2), torch.arange(0), 3).shape == (0,)
