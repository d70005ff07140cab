"""Recovered features against a brute-force matching, and the cases that a plain maximum gets wrong."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from apportion.errors import InvalidInput
from apportion.metrics import recovered


def directions(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_all_in_any_order_and_length() -> None:
    true = directions(40, 16)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    learned = torch.cat([true[order] * torch.rand(40, 1).add(0.1), directions(60, 16, seed=2)])
    assert recovered(true, learned) == 1
    assert recovered(true * 7, true[:10]) == 0.25


@pytest.mark.parametrize("size", [0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.95])
def test_against_the_best_assignment_of_distinct_features(size: float, threshold: float) -> None:
    true, noise = directions(30, 32), directions(90, 32, seed=3)
    learned = true.repeat(3, 1) + size * noise  # three learned features around each true one
    cosine = torch.cosine_similarity(true[:, None], learned[None], dim=-1)
    near = (cosine > threshold).double()
    rows, columns = linear_sum_assignment(near.numpy(), maximize=True)
    assert recovered(true, learned, threshold) == pytest.approx(float(near[rows, columns].mean()))


def test_a_learned_feature_serves_one_true_feature() -> None:
    true = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]])
    assert recovered(true, torch.tensor([[1.0, 0.01]])) == pytest.approx(1 / 3)
    assert recovered(true, torch.tensor([[1.0, 0.1], [1.0, -0.1]])) == pytest.approx(2 / 3)


def test_opposite_and_empty_directions_hold_nothing() -> None:
    true = directions(5, 8)
    assert recovered(true, -true) == 0
    assert recovered(true, torch.zeros(9, 8), threshold=0.0) == 0


def test_the_threshold_is_exclusive_and_in_cosine() -> None:
    true, learned = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert recovered(true, learned, 0.59) == 1 and recovered(true, learned, 0.61) == 0


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="width"):
        recovered(torch.ones(3, 4), torch.ones(3, 5))
    with pytest.raises(InvalidInput, match="0 true and 3 learned"):
        recovered(torch.ones(0, 4), torch.ones(3, 4))
    with pytest.raises(InvalidInput, match=r"threshold = 1\.0"):
        recovered(torch.ones(3, 4), torch.ones(3, 4), 1.0)
