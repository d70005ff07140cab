"""L0 and its standard error against naive references, a jackknife and a bootstrap over documents."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.code import Code
from apportion.errors import InvalidInput
from apportion.metrics import MetricBatch, Sparsity


def measure(
    counts: torch.Tensor, document: torch.Tensor | None, width: int = 40, block: int = 100
) -> dict[str, Any]:
    """Sparsity of a code with ``counts [n]`` features per token."""
    metric = Sparsity()
    z = (torch.arange(width) < counts[:, None]).float()
    for start in range(0, len(z), block):
        part, doc = z[start : start + block], None if document is None else document[start : start + block]
        metric.update(MetricBatch(part[:, :2], part[:, :2], Code.from_dense(part), doc))
    return metric.result()


def clustered(documents: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts that differ between documents of unequal length, and the document of each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, documents)
    level = rng.uniform(5, 15, documents)
    counts = np.concatenate([rng.poisson(m, n) for m, n in zip(level, lengths, strict=True)]).clip(0, 40)
    return torch.from_numpy(counts), torch.from_numpy(np.repeat(np.arange(documents), lengths) * 7 - 3)


def test_against_naive(make_batch: Any) -> None:
    batch, z = make_batch(n=117, features=13)
    metric = Sparsity()
    metric.update(batch)
    result = metric.result()
    counts = (z > 0).sum(1)
    assert result["tokens"] == 117
    assert result["documents"] == len(batch.document.unique())
    assert result["l0"] == pytest.approx(float(counts.double().mean()), rel=1e-14)
    assert result["l0_std"] == pytest.approx(float(counts.double().std(correction=0)), rel=1e-12)
    assert (result["l0_min"], result["l0_max"]) == (int(counts.min()), int(counts.max()))
    assert result["l0_histogram"] == [int((counts == k).sum()) for k in range(int(counts.max()) + 1)]


def test_explicit_zeros_do_not_count() -> None:
    code = Code(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0, 1, 0]), torch.tensor([0, 2, 3]), 4, (2,))
    metric = Sparsity()
    metric.update(MetricBatch(torch.zeros(2, 1), torch.zeros(2, 1), code))
    assert metric.result()["l0_histogram"] == [1, 1]
    assert metric.result()["l0"] == 0.5


def test_all_zero_codes() -> None:
    result = measure(torch.zeros(9, dtype=torch.int64), torch.arange(9))
    assert (result["l0"], result["l0_se"], result["l0_std"], result["l0_histogram"]) == (0, 0, 0, [9])
    assert (result["l0_min"], result["l0_max"]) == (0, 0)


def test_standard_error_is_near_a_cluster_bootstrap_and_a_jackknife() -> None:
    counts, document = clustered(200)
    result = measure(counts, document)
    groups = [counts[document == d].double().numpy() for d in document.unique()]
    s, n = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    draws = np.random.default_rng(1).integers(0, 200, (4000, 200))
    bootstrap = (s[draws].sum(1) / n[draws].sum(1)).std()
    left_out = (s.sum() - s) / (n.sum() - n)
    jackknife = np.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    assert result["l0_se"] == pytest.approx(jackknife, rel=0.02)
    assert result["l0_se"] == pytest.approx(bootstrap, rel=0.05)
    # A standard error over tokens would be several times too small here.
    assert result["l0_se"] > 2 * float(counts.double().std()) / len(counts) ** 0.5


def test_without_documents_every_token_is_its_own() -> None:
    counts, _ = clustered(20)
    alone = measure(counts, None)
    assert alone["documents"] is None
    assert alone["l0_se"] == pytest.approx(float(counts.double().std()) / len(counts) ** 0.5, rel=1e-12)
    assert alone["l0_se"] == pytest.approx(measure(counts, torch.arange(len(counts)))["l0_se"], rel=1e-12)


@pytest.mark.parametrize(("n", "document"), [(9, torch.zeros(9, dtype=torch.int64)), (1, None)])
def test_one_unit_has_no_standard_error(n: int, document: torch.Tensor | None) -> None:
    assert measure(torch.arange(n), document)["l0_se"] is None


@settings(max_examples=20, deadline=None)
@given(block=st.integers(1, 300), seed=st.integers(0, 9))
def test_equal_to_the_bit_for_any_block_size(block: int, seed: int) -> None:
    counts, document = clustered(7, seed)
    assert measure(counts, document, block=block) == measure(counts, document, block=1000)


def test_documents_may_come_back() -> None:
    counts = torch.tensor([1, 2, 3, 4])
    split, together = torch.tensor([5, 6, 5, 6]), torch.tensor([5, 5, 6, 6])
    assert measure(counts, split, block=1)["l0_se"] == measure(counts[[0, 2, 1, 3]], together)["l0_se"]


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="0 tokens"):
        Sparsity().result()
    metric, x, code = Sparsity(), torch.zeros(2, 1), Code.from_dense(torch.zeros(2, 4))
    metric.update(MetricBatch(x, x, code, torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(InvalidInput, match="for every block or for none"):
        metric.update(MetricBatch(x, x, code))
