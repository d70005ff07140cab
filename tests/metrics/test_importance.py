"""Gains against reconstructions made with and without each feature."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

import apportion as ap
from apportion.allocators import MutualChoiceConfig
from apportion.code import Code
from apportion.evaluate import reblock
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


def test_some_tokens_of_each_block_are_those_tokens_alone():
    sae, x = make_sae(MutualChoiceConfig.for_k(5), dtype=torch.float64), inputs(60, dtype=torch.float64)
    few, want = (MonotonicImportance(sae.W_dec, sae.b_dec, most) for most in (7, None))
    with torch.no_grad():
        for block in x.split(20):
            trace = sae.trace(block)
            few.update(MetricBatch(block, trace.x_hat, trace.code))
            dense = trace.code.to_dense()[:7]
            part = Code.from_dense(dense)
            want.update(MetricBatch(block[:7], sae.decode(part), part))
    assert few.result() == pytest.approx(want.result())


def test_an_evaluation_with_an_oracle_has_it_of_an_eighth_of_the_tokens():
    sae, source = make_sae(MutualChoiceConfig.for_k(5)).freeze(), ap.TensorSource(inputs(9000), heldout=0.5)
    found = ap.evaluate(sae, source, oracle=16)
    metric = MonotonicImportance(sae.W_dec, sae.b_dec)
    with torch.no_grad():
        for batch in reblock(source.blocks("evaluate")):
            x = batch.x[:128]
            trace = sae.read(x)
            metric.update(MetricBatch(x, trace.x_hat, trace.code))
    want = metric.result()
    assert {name: found[name] for name in want} == pytest.approx(want)
    assert found["importance_alone"] < found["importance_in_order"], "the latter flatters"
    assert "importance_alone" not in ap.evaluate(sae, source)
