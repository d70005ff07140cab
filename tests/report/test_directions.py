"""Neighbours and logits, against whole products."""

from __future__ import annotations

import pytest
import torch

from apportion.activations import LoadedModel
from apportion.errors import InvalidInput
from apportion.report import directions
from apportion.report.directions import logits, neighbours, unembedding


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_neighbours_are_the_largest_cosines_of_others(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(directions, "_PRODUCTS_AT_ONCE", at_once)
    W_dec = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    features = torch.tensor([4, 29, 0])
    found, cosine = neighbours(W_dec, features, 5)
    every = torch.nn.functional.cosine_similarity(W_dec[features, None], W_dec[None], dim=-1)
    every[torch.arange(3), features] = -2
    torch.testing.assert_close(cosine, every.topk(5).values)
    assert torch.equal(found, every.topk(5).indices)


def test_few_features_have_few_neighbours_and_a_zero_direction_none_near() -> None:
    found, cosine = neighbours(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), 6)
    assert found.tolist() == [[1], [0]] and cosine.tolist() == [[0.0], [0.0]]


def test_logits_are_products_with_the_unembedding() -> None:
    generator = torch.Generator().manual_seed(0)
    W, W_U = torch.randn(4, 6, generator=generator), torch.randn(20, 6, generator=generator)
    (up, raised), (down, lowered) = logits(W, W_U, 3)
    products = W @ W_U.T
    torch.testing.assert_close(raised, products.sort(descending=True).values[:, :3])
    torch.testing.assert_close(lowered, products.sort().values[:, :3])
    torch.testing.assert_close(products.gather(1, up), raised)
    torch.testing.assert_close(products.gather(1, down), lowered)


def test_a_model_without_fitting_unembedding_is_refused(model: LoadedModel) -> None:
    assert unembedding(model, 16, 10).shape == (10, 16)
    with pytest.raises(InvalidInput, match="reads width 16 and the features have 8"):
        unembedding(model, 8)
    with pytest.raises(InvalidInput, match="has no unembedding"):
        unembedding(LoadedModel(model.model, None, "encoder", causal=False), 16)
