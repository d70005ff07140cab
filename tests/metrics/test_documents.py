"""Sums per document against naive ones, and against the measures that they add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from apportion.code import Code
from apportion.errors import InvalidInput
from apportion.metrics import MetricBatch, PerDocument, Reconstruction, Sparsity


def test_against_naive(make_batch: Any) -> None:
    batch, z = make_batch(n=117, features=13)
    metric = PerDocument()
    metric.update(batch)
    found = metric.result()
    assert found["document"] == batch.document.unique().tolist()
    for at, name in enumerate(found["document"]):
        own = batch.document == name
        error = (batch.x[own].double() - batch.x_hat[own].double()).square().sum()
        assert found["document_tokens"][at] == int(own.sum())
        assert found["document_features"][at] == int((z[own] > 0).sum())
        assert found["document_error"][at] == pytest.approx(float(error), rel=1e-12)


def test_they_add_up_to_l0_and_fvu(make_batch: Any, cut: Callable[..., list[MetricBatch]]) -> None:
    batch, z = make_batch(n=100)
    metrics = [PerDocument(), Sparsity(), Reconstruction()]
    for part in cut(batch, z, [30, 1, 69]):
        for metric in metrics:
            metric.update(part)
    sums, sparsity, fit = (metric.result() for metric in metrics)
    tokens, features = sum(sums["document_tokens"]), sum(sums["document_features"])
    spread = float((batch.x.double() - batch.x.double().mean(0)).square().sum())
    assert features / tokens == sparsity["l0"]
    assert sum(sums["document_error"]) / spread == pytest.approx(fit["fvu"], rel=1e-12)


def test_refusals() -> None:
    x: Tensor = torch.zeros(2, 3)
    with pytest.raises(InvalidInput, match="no document numbers"):
        PerDocument().update(MetricBatch(x, x, Code.from_dense(torch.zeros(2, 4))))
    with pytest.raises(InvalidInput, match="0 tokens"):
        PerDocument().result()
