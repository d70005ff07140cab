"""FVU, explained variance and cosine against naive float64 references."""

from typing import Any

import pytest
import torch

from apportion.code import Code
from apportion.errors import InvalidInput, NonFiniteActivations
from apportion.metrics import MetricBatch, Reconstruction


def measure(x: torch.Tensor, x_hat: torch.Tensor, block: int = 50) -> dict[str, Any]:
    metric = Reconstruction()
    for a, b in zip(x.split(block), x_hat.split(block), strict=True):
        metric.update(MetricBatch(a, b, Code.from_dense(torch.zeros(len(a), 3))))
    return metric.result()


def naive_fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


@pytest.mark.parametrize(("n", "d", "block"), [(2, 1, 1), (117, 7, 50), (1025, 3, 1024), (64, 33, 7)])
def test_against_naive_float64(n: int, d: int, block: int) -> None:
    gen = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=gen)
    x_hat = x + 0.5 * torch.randn(n, d, generator=gen)
    result = measure(x, x_hat, block)
    assert result["fvu"] == pytest.approx(naive_fvu(x, x_hat), rel=1e-12)
    assert result["explained_variance"] == 1 - result["fvu"]
    cosine = torch.cosine_similarity(x.double(), x_hat.double(), dim=-1, eps=0).mean()
    assert result["cosine"] == pytest.approx(float(cosine), rel=1e-12)


def test_a_huge_common_mean_does_not_cancel() -> None:
    gen = torch.Generator().manual_seed(0)
    small, noise = (torch.randn(999, 11, generator=gen).double() for _ in range(2))
    expected = naive_fvu(small, small + 0.1 * noise)
    assert measure(small + 1e4, small + 1e4 + 0.1 * noise)["fvu"] == pytest.approx(expected, rel=1e-9)


def test_float32_rows_with_a_huge_mean_are_summed_in_float64() -> None:
    x = torch.randn(999, 11, generator=torch.Generator().manual_seed(0)) + 1e4
    x_hat = x + 0.25
    assert measure(x, x_hat)["fvu"] == pytest.approx(naive_fvu(x, x_hat), rel=1e-9)


def test_a_bias_is_punished() -> None:
    """The variance of the residual would forgive it."""
    x = torch.randn(301, 5, generator=torch.Generator().manual_seed(0))
    variance = float(x.double().var(0, correction=0).sum())
    assert measure(x, x + 2.0)["fvu"] == pytest.approx(5 * 4 / variance, rel=1e-6)


def test_the_mean_is_of_the_whole_set_and_not_of_a_block() -> None:
    """Two blocks far apart: per-block means would leave almost no variance."""
    x = torch.cat([torch.zeros(50, 3), torch.full((50, 3), 100.0)])
    assert measure(x, x.mean(0).expand(100, 3), block=50)["fvu"] == pytest.approx(1)


def test_perfect_and_empty_reconstructions() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    perfect, empty = measure(x, x), measure(x, torch.zeros_like(x))
    assert perfect["fvu"] == 0
    assert perfect["cosine"] == pytest.approx(1)
    assert empty["cosine"] == 0
    assert empty["fvu"] >= 1


def test_a_zero_token_among_others_has_cosine_zero() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    x_hat = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, -1.0]])
    assert measure(x, x_hat)["cosine"] == pytest.approx(0.0)
    assert measure(x[:2], x_hat[:2])["cosine"] == pytest.approx(0.5)


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="0 tokens"):
        Reconstruction().result()
    with pytest.raises(InvalidInput, match="all equal"):
        measure(torch.ones(5, 2), torch.zeros(5, 2))
    with pytest.raises(NonFiniteActivations):
        measure(torch.eye(3), torch.full((3, 3), float("nan")))


def test_no_gradient_is_held() -> None:
    x = torch.randn(9, 3, requires_grad=True)
    metric = Reconstruction()
    metric.update(MetricBatch(x, x * 0.5, Code.from_dense(torch.zeros(9, 2))))
    assert not metric._spread.scatter.requires_grad
