"""Densities, their histogram and their Gini coefficient against naive references."""

from typing import Any

import pytest
import torch

from apportion.allocators import TokenChoiceConfig
from apportion.code import Code
from apportion.errors import InvalidInput
from apportion.metrics import FeatureDensity, MetricBatch, Silence

from ..conftest import inputs, make_sae


def of_dense(z: torch.Tensor) -> FeatureDensity:
    metric = FeatureDensity(z.shape[1])
    metric.update(MetricBatch(z[:, :1], z[:, :1], Code.from_dense(z)))
    return metric


def of_counts(fired: list[int], tokens: int) -> dict[str, Any]:
    """Feature f fires on the first ``fired[f]`` of the tokens."""
    return of_dense((torch.arange(tokens)[:, None] < torch.tensor(fired)).float()).result()


def test_against_naive(make_batch: Any, cut: Any) -> None:
    batch, z = make_batch(n=117, features=13)
    metric = FeatureDensity(13)
    for piece in cut(batch, z, [40, 1, 76]):
        metric.update(piece)
    density = (z > 0).double().mean(0)
    torch.testing.assert_close(metric.density(), density, rtol=0, atol=0)
    result = metric.result()
    assert result["never_fires"] == float((density == 0).double().mean()) == 2 / 13
    assert result["density_zero"] == 2
    gaps = (density[:, None] - density[None]).abs().sum()
    assert result["density_gini"] == pytest.approx(float(gaps / (2 * 13 * density.sum())), rel=1e-12)


def test_silent_is_what_no_token_wants_at_all() -> None:
    """Whether it fires does not matter, and the few that are left are looked at one by one."""
    sae = make_sae(TokenChoiceConfig.for_k(1)).requires_grad_(False)
    sae.encoder.bias[:3], sae.encoder.bias[3] = -1e6, -2.5
    metric, blocks = Silence(96), [inputs(20, seed=seed) for seed in range(6)]
    expected = torch.ones(96, dtype=torch.bool)
    for x in blocks:
        trace = sae.read(x)
        metric.update(MetricBatch(x, trace.x_hat, trace.code, pre=trace.pre))
        expected &= ((x - sae.b_dec) @ sae.W_enc + sae.b_enc <= 0).all(0)
        assert metric.result() == {"silent": int(expected.sum()) / 96}
    assert 3 <= int(expected.sum()) < 12


def test_silence_needs_affinities_and_tokens() -> None:
    with pytest.raises(InvalidInput, match="no affinities"):
        Silence(4).update(MetricBatch(torch.zeros(1, 1), torch.zeros(1, 1), Code.from_dense(torch.zeros(1, 4))))
    with pytest.raises(InvalidInput, match="0 tokens"):
        Silence(4).result()


def test_histogram_counts_every_feature_once_in_half_decades() -> None:
    result = of_counts([0, 0, 1, 9, 10, 99, 100, 316, 317, 999, 1000], tokens=1000)
    edges, counts = result["density_log10_edges"], result["density_histogram"]
    assert edges[0] == -7
    assert edges[-1] == 0
    assert len(counts) == len(edges) - 1 == 14
    assert result["density_zero"] + sum(counts) == 11
    filled = {edges[i]: n for i, n in enumerate(counts) if n}
    assert filled == {-3.0: 1, -2.5: 1, -2.0: 1, -1.5: 1, -1.0: 2, -0.5: 3}


def test_gini_at_its_ends() -> None:
    assert of_counts([4, 4, 4], tokens=9)["density_gini"] == 0
    assert of_counts([0, 0, 0, 7], tokens=9)["density_gini"] == pytest.approx(3 / 4)
    assert of_counts([0, 0], tokens=9)["density_gini"] is None


def test_all_zero_codes() -> None:
    result = of_counts([0, 0, 0], tokens=5)
    assert (result["never_fires"], result["density_zero"]) == (1, 3)
    assert sum(result["density_histogram"]) == 0


def test_explicit_zeros_do_not_fire() -> None:
    code = Code(torch.tensor([0.0, 2.0]), torch.tensor([0, 1]), torch.tensor([0, 2]), 3, (1,))
    metric = FeatureDensity(3)
    metric.update(MetricBatch(torch.zeros(1, 1), torch.zeros(1, 1), code))
    assert metric.density().tolist() == [0, 1, 0]


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="0 tokens"):
        FeatureDensity(3).result()
    with pytest.raises(InvalidInput, match="4 features"):
        FeatureDensity(3).update(
            MetricBatch(torch.zeros(1, 1), torch.zeros(1, 1), Code.from_dense(torch.zeros(1, 4)))
        )
