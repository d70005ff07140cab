"""Gains against reconstructions made with and without each feature."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from apportion.allocators import MutualChoiceConfig
from apportion.metrics import MetricBatch, importance
from apportion.metrics.importance import MonotonicImportance

from ..conftest import inputs, make_sae


def by_hand(sae, x):
    """Mean coefficients, one token and one reconstruction at a time."""
    alone, in_order = [], []
    code = sae.trace(
        x,
    ).code
    for row in range(len(x)):
        part = slice(int(code.offsets[row]), int(code.offsets[row + 1]))
        values, features = code.values[part].detach(), code.indices[part]
        if len(values) < 3:
            continue
        steps = values[:, None] * sae.W_dec.detach()[features]
        target = x[row] - sae.b_dec.detach()
        full = (target - steps.sum(0)).square().sum()
        without = [(target - steps.sum(0) + step).square().sum() for step in steps]
        alone.append(spearmanr(values, torch.stack(without) - full).statistic)
        left, gains = target, torch.zeros(len(values), dtype=x.dtype)
        for entry in values.argsort(descending=True):
            gains[entry] = left.square().sum() - (left - steps[entry]).square().sum()
            left = left - steps[entry]
        in_order.append(spearmanr(values, gains).statistic)
    return sum(alone) / len(alone), sum(in_order) / len(in_order), len(alone)


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_it_is_its_definition(at_once, monkeypatch):
    monkeypatch.setattr(importance, "_ENTRIES_AT_ONCE", at_once)
    sae, x = make_sae(MutualChoiceConfig.for_k(5), dtype=torch.float64), inputs(60, dtype=torch.float64)
    metric = MonotonicImportance(sae.W_dec.detach(), sae.b_dec.detach())
    with torch.no_grad():
        trace = sae.trace(x)
    metric.update(MetricBatch(x, trace.x_hat, trace.code))
    result, want = metric.result(), by_hand(sae, x)
    assert result["importance_alone"] == pytest.approx(want[0])
    assert result["importance_in_order"] == pytest.approx(want[1])
    assert result["importance_tokens"] == want[2] < 60


def test_orthonormal_directions_make_the_heuristic_exact():
    sae, x = make_sae(MutualChoiceConfig.for_k(5), d_in=96, dtype=torch.float64), None
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(torch.randn(96, 96, dtype=torch.float64))[0])
        sae.encoder.weight.copy_(sae.W_dec)
        sae.encoder.bias.zero_()
        x = inputs(40, d_in=96, dtype=torch.float64)
        trace = sae.trace(x)
    metric = MonotonicImportance(sae.W_dec.detach(), sae.b_dec.detach())
    metric.update(MetricBatch(x, trace.x_hat, trace.code))
    assert metric.result()["importance_alone"] == pytest.approx(1.0)
    assert metric.result()["importance_in_order"] == pytest.approx(1.0)


def test_no_token_with_three_features_has_no_coefficient():
    assert MonotonicImportance(torch.zeros(4, 2), torch.zeros(2)).result()["importance_alone"] is None
