"""PCA against an independent singular value decomposition."""

from itertools import pairwise

import pytest
import torch

from apportion.errors import InvalidInput
from apportion.metrics import fit_pca, pca_fvu


def rows(n: int, seed: int, mean: float = 3.0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, 9, generator=gen) * torch.linspace(3, 0.1, 9) + mean


@pytest.mark.parametrize("k", [0, 1, 4, 9])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_against_svd_on_held_out_rows(k: int, mean: float) -> None:
    fit, held = rows(211, 0, mean), rows(83, 1, mean)
    centre = fit.double().mean(0)
    basis = torch.linalg.svd(fit.double() - centre).Vh[:k]
    away = held.double() - centre
    error = ((away - away @ basis.T @ basis) ** 2).sum()
    expected = float(error / ((held.double() - held.double().mean(0)) ** 2).sum())
    assert pca_fvu(fit.split(50), held.split(17), k) == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert pca_fvu(fit, held, k) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_more_components_never_hurt_and_all_are_exact() -> None:
    fvus = [pca_fvu(rows(100, 0), rows(50, 1), k) for k in range(10)]
    assert all(a > b for a, b in pairwise(fvus))
    assert fvus[-1] < 1e-20
    assert fvus[0] >= 1


def test_components_are_orthonormal_and_fall_in_variance() -> None:
    x = rows(100, 0)
    pca = fit_pca([x])
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(9).double(), atol=1e-12, rtol=0)
    spread = ((x.double() - pca.mean) @ pca.components.T).var(0)
    assert bool((spread.diff() < 0).all())


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="k = 10"):
        pca_fvu(rows(20, 0), rows(20, 1), 10)
    with pytest.raises(InvalidInput, match="0 tokens"):
        pca_fvu([], rows(20, 1), 1)
    with pytest.raises(InvalidInput, match="0 tokens"):
        pca_fvu(rows(20, 0), [], 1)
