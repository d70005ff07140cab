"""Thresholds lie between two entries, as inference computes them, and what is counted is what fires."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import (
    FeatureThresholdConfig,
    GateConfig,
    MutualChoiceConfig,
    ReLUConfig,
    ScaledThresholdsConfig,
    ThresholdConfig,
)
from apportion.ops.cut import between, widest_near

from ..conftest import inputs, make_sae

RULES = [
    config.for_k(k)
    for config in (ThresholdConfig, GateConfig, ScaledThresholdsConfig, FeatureThresholdConfig)
    for k in (0.004, 3.0, 6.3)
]


def repeated(n: int = 40) -> list[torch.Tensor]:
    """The same few rows again and again, at other places of blocks of other sizes: many equal entries."""
    rows = inputs(n)
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in range(60)]
    return [rows[torch.cat(order[a:b])] for a, b in ((0, 7), (7, 8), (8, 31), (31, 60))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{rule.k:g}")
def test_what_a_calibration_counts_is_what_encode_gives(rule):
    sae, blocks = make_sae(rule).requires_grad_(False), repeated()
    fitted, calibration = sae.calibrate(lambda: iter(blocks), rule.k)
    x = torch.cat(blocks)
    for size in (1, 96, 1024, len(x)):
        part = x[: 40 if size == 1 else len(x)]
        spent = sum(fitted.encode(some).nnz for some in part.split(size))
        if len(part) == len(x):
            assert spent == round(calibration.l0 * len(x))
    exact = (x.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    theta = fitted.allocator.theta.double()
    assert (exact - theta).abs().min() > 1e-9, "no threshold lies on an entry"


@pytest.mark.parametrize("rule", [ReLUConfig.for_k(3), MutualChoiceConfig.for_k(3)], ids=lambda rule: rule.kind)
def test_the_cut_is_the_gap_of_exact_values_nearest_to_k(rule):
    sae, blocks = make_sae(rule).requires_grad_(False), repeated()
    fitted, calibration = sae.calibrate(lambda: iter(blocks), 3.01)
    x = torch.cat(blocks)
    exact = (x[:40].double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    # Each of 40 rows comes 60 times: a threshold may have 120, 121, ... of 40 x 3.01 = 120.4 entries above it.
    falling = exact.flatten().sort(descending=True).values
    assert falling[120] < float(fitted.allocator.theta) < falling[119] and calibration.l0 == 3.0


def test_a_cut_that_float32_has_no_number_for_moves_to_the_next():
    values = torch.tensor([2.0, 1.0 + 2e-9, 1.0 + 1e-9, 1.0, 0.5], dtype=torch.float64)
    assert between(values.float(), 2) == 1.0
    theta, above = widest_near(values[1:4], 1.0, 0.1, 1, 2)
    assert above == 1 and 1.0 + 2e-9 < theta < 1.1
    theta, above = widest_near(values[1:4], 1.0, 0.1, 1, 3)
    assert above == 4 and 0.9 < theta < 1.0
