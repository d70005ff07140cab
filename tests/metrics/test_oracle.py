"""The oracle against every split of a few tokens, and the two rules whose efficiency is known."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from apportion.affinities import Ordered
from apportion.allocators import FeatureThresholdConfig, MutualChoiceConfig, ThresholdConfig, TokenChoiceConfig
from apportion.code import Code
from apportion.errors import InvalidInput
from apportion.metrics import MetricBatch, Oracle, oracle
from apportion.ops.waterfill import best_k, prefix_errors
from apportion.sae import SAE

from ..conftest import inputs, make_sae

WIDTH = 96


def small(config=None, n: int = 4) -> tuple[SAE, Tensor]:
    """An SAE whose values are small enough that error falls for many features, and tokens."""
    sae = make_sae(config or TokenChoiceConfig.for_k(2), dtype=torch.float64).requires_grad_(False)
    sae.encoder.weight *= 0.25
    sae.encoder.bias *= 0.25
    return sae, inputs(n, dtype=torch.float64) + sae.b_dec


def split(order: Ordered, k: Tensor) -> Code:
    """The code that gives token b the first ``k[b]`` of its order."""
    values = order.values * (torch.arange(order.values.shape[1]) < k[:, None])
    return Code.from_dense(values.new_zeros(len(k), WIDTH).scatter_add(1, order.features, values))


def measured(sae: SAE, x: Tensor, code: Code, k_max: int = WIDTH, sizes: list[int] | None = None) -> dict:
    metric, start = Oracle(sae.W_dec, sae.b_dec), 0
    for part, z in zip(x.split(sizes or len(x)), code.to_dense().split(sizes or len(x)), strict=True):
        piece = Code.from_dense(z)
        metric.update(MetricBatch(part, sae.decode(piece), piece, None, sae.order(sae.read(part), k_max)))
        start += len(part)
    return json.loads(json.dumps(metric.result(), allow_nan=False))


def errors_of(sae: SAE, x: Tensor, k_max: int) -> tuple[Ordered, Tensor]:
    order = sae.order(sae.read(x), k_max)
    return order, prefix_errors(x - sae.b_dec, sae.W_dec, *order)


@pytest.mark.parametrize("n, k_max, seed", [(4, 5, 0), (3, 5, 1), (4, 4, 2), (2, 5, 3), (4, 3, 4)])
def test_it_is_the_best_of_all_splits_at_budgets_that_a_price_attains(n: int, k_max: int, seed: int) -> None:
    sae, x = small(n=n)
    x = x + inputs(n, seed=seed + 50, dtype=torch.float64)
    order, errors = errors_of(sae, x, k_max)
    variance = float((x - x.mean(0)).square().sum())
    attained = {int(k.sum()) for k in (best_k(errors, 2.0**-p) for p in torch.arange(-6, 12, 0.01).tolist())}
    assert len(attained) > n
    for budget in range(n * k_max + 1):
        splits = [k for k in itertools.product(range(k_max + 1), repeat=n) if sum(k) <= budget]
        totals = errors.gather(1, torch.tensor(splits).T)
        smallest = float(totals.sum(0).min()) / variance
        level, more = divmod(budget, n)
        code = split(order, torch.tensor([level + (b < more) for b in range(n)]))
        if code.nnz < budget:
            continue
        result = measured(sae, x, code, k_max)
        assert result["fvu_oracle"] <= smallest + 1e-12
        if budget in attained:
            assert result["fvu_oracle"] == pytest.approx(smallest)
        assert result["fvu_oracle_slack"] == 0


@pytest.mark.parametrize("k", [1, 5, 12])
def test_one_k_for_all_has_efficiency_zero(k: int) -> None:
    sae, x = small(TokenChoiceConfig.for_k(k), 300)
    result = measured(sae, x, sae.encode(x), sizes=[100, 37, 163])
    assert result["allocation_efficiency"] == pytest.approx(0, abs=1e-9)
    assert result["fvu_uniform"] > result["fvu_oracle"]
    assert result["k_correlation"] is None


@pytest.mark.parametrize("price", [0.05, 0.3, 2.0])
def test_the_best_split_has_efficiency_one(price: float) -> None:
    sae, x = small(n=300)
    order, errors = errors_of(sae, x, WIDTH)
    k = best_k(errors, price)
    result = measured(sae, x, split(order, k))
    assert result["allocation_efficiency"] == pytest.approx(1)
    assert result["k_correlation"] == pytest.approx(1, abs=1e-3)
    assert result["oracle_l0"] == pytest.approx(float(k.double().mean()), abs=0.05)
    assert result["oracle_price"] == pytest.approx(price * 300 / float((x - x.mean(0)).square().sum()), rel=0.05)


def test_a_rule_that_gives_hard_tokens_less_is_below_zero() -> None:
    sae, x = small(n=300)
    order, errors = errors_of(sae, x, WIDTH)
    hard = errors[:, 6] > errors[:, 6].median()
    assert measured(sae, x, split(order, torch.where(hard, 3, 9)))["allocation_efficiency"] < 0


def test_one_k_for_all_spends_what_poor_tokens_leave() -> None:
    """mean min(k, n_b) = L0, between whole k interpolated."""
    sae, x = small(n=3)
    values = torch.tensor([[3.0, 2.0, 1.0, 0.5], [2.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.4, 0.3]], dtype=torch.float64)
    order = Ordered(torch.arange(12).reshape(3, 4), values)
    errors = prefix_errors(x - sae.b_dec, sae.W_dec, *order).sum(0)
    metric, code = Oracle(sae.W_dec, sae.b_dec), split(order, torch.tensor([4, 0, 2]))
    metric.update(MetricBatch(x, sae.decode(code), code, None, order))
    variance = float((x - x.mean(0)).square().sum())
    # One feature each spends 3, two spend 5, three spend 7: the six that were spent are half-way.
    result = metric.result()
    assert result["fvu_uniform"] == pytest.approx(float(errors[2] + errors[3]) / 2 / variance)
    assert result["short_of_uniform"] == pytest.approx(1 / 3)
    assert result["allocation_efficiency"] is not None


def test_a_rule_that_leaves_nothing_positive_unused_has_no_efficiency() -> None:
    """One k for all that spends as much gives most tokens all that they have: the rule itself."""
    sae, x = small(n=3)
    values = torch.tensor([[3.0, 2.0, 1.0, 0.5], [2.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    order = Ordered(torch.arange(12).reshape(3, 4), values)
    metric, code = Oracle(sae.W_dec, sae.b_dec), split(order, torch.tensor([4, 1, 2]))
    metric.update(MetricBatch(x, sae.decode(code), code, None, order))
    result = metric.result()
    assert result["short_of_uniform"] == pytest.approx(2 / 3)
    assert result["fvu_uniform"] == pytest.approx(result["fvu_in_order"])
    assert result["allocation_efficiency"] is None


@pytest.mark.parametrize("config", [ThresholdConfig.for_k(6), FeatureThresholdConfig.for_k(6)])
def test_frozen_codes_are_prefixes_and_what_follows_is_by_hand(config) -> None:
    sae, _ = small(config)
    sae, _ = sae.calibrate(lambda: iter([inputs(400, seed=9, dtype=torch.float64) + sae.b_dec]), 6)
    sae.requires_grad_(False)
    x = inputs(250, dtype=torch.float64) + sae.b_dec
    code = sae.encode(x)
    result = measured(sae, x, code, k_max=64)
    fvu = float((x - sae.decode(code)).square().sum() / (x - x.mean(0)).square().sum())
    assert result["fvu_in_order"] == pytest.approx(fvu)
    assert result["fvu_oracle"] < fvu
    gains = -errors_of(sae, x, 64)[1].diff()
    rho = [
        spearmanr(-torch.arange(k), row[:k]).statistic
        for k, row in zip(code.counts().tolist(), gains, strict=True)
        if k >= 3
    ]
    assert result["gain_correlation"] == pytest.approx(sum(rho) / len(rho))


def test_a_code_out_of_order_shows() -> None:
    sae, x = small(MutualChoiceConfig.for_k(6), 50)
    order = sae.order(sae.read(x), WIDTH)
    code = split(Ordered(order.features[:, 3:], order.values[:, 3:]), torch.full((50,), 4))
    result = measured(sae, x, code)
    fvu = float((x - sae.decode(code)).square().sum() / (x - x.mean(0)).square().sum())
    assert result["fvu_in_order"] < 0.9 * fvu


def test_a_budget_beyond_k_max_has_no_efficiency_and_says_so() -> None:
    sae, x = small(TokenChoiceConfig.for_k(9), 40)
    result = measured(sae, x, sae.encode(x), k_max=4)
    assert result["allocation_efficiency"] is None
    assert result["fvu_uniform"] is None and result["short_of_uniform"] is None
    assert (result["k_max"], result["beyond_k_max"]) == (4, 1.0)
    assert 0.5 < result["at_k_max"] <= 1


def test_blocks_do_not_matter_and_thinning_stays_within_its_slack(monkeypatch) -> None:
    sae, x = small(MutualChoiceConfig.for_k(6), 500)
    code = sae.encode(x)
    whole = measured(sae, x, code)
    for key, value in measured(sae, x, code, sizes=[1, 0, 99, 257, 143]).items():
        assert value == pytest.approx(whole[key])
    monkeypatch.setattr(oracle, "STEPS", 2000)
    monkeypatch.setattr(oracle, "SAMPLE", 100)
    thin = measured(sae, x, code, sizes=[1, 0, 99, 257, 143])
    assert 0 < thin["fvu_oracle_slack"] < 0.01 * thin["fvu_oracle"]
    assert 0 <= thin["fvu_oracle"] - whole["fvu_oracle"] <= thin["fvu_oracle_slack"]
    assert thin["oracle_tokens"] == 63  # every eighth of 500
    assert thin["k_correlation"] == pytest.approx(whole["k_correlation"], abs=0.2)


@pytest.mark.parametrize("sizes", [[500], [1] * 500, [0, 3, 130, 7, 360], [499, 1]])
def test_a_sample_is_evenly_spaced_whatever_the_blocks(sizes: list[int], monkeypatch) -> None:
    monkeypatch.setattr(oracle, "SAMPLE", 100)
    sample, numbers = oracle._Sample(), torch.arange(500)
    for part in numbers.split(sizes):
        sample.add(part[:, None].double(), part)
    assert torch.equal(sample._counts, numbers[::8])
    assert torch.equal(sample._errors[:, 0].long(), numbers[::8])


def test_a_block_without_an_order_is_refused() -> None:
    sae, x = small()
    code = sae.encode(x)
    with pytest.raises(InvalidInput, match="order"):
        Oracle(sae.W_dec, sae.b_dec).update(MetricBatch(x, sae.decode(code), code))
    with pytest.raises(InvalidInput, match="order of 3 tokens"):
        MetricBatch(x, sae.decode(code), code, None, sae.order(sae.read(x[:3]), 5))
    with pytest.raises(InvalidInput, match="0 tokens"):
        Oracle(sae.W_dec, sae.b_dec).result()
