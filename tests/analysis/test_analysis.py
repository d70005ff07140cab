"""What k follows on a source without contexts, and what the analysis refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import apportion as ap
from apportion.allocators import AllocatorConfig
from apportion.analysis import adaptivity, dimensions, register_probes, rows, surprisals
from apportion.errors import InvalidInput
from apportion.metrics import Classes, local_dimension

from ..conftest import inputs, make_sae
from ..report import report_kit


def test_tensors_have_no_frequency_and_every_document_is_a_context() -> None:
    sae = make_sae(AllocatorConfig.lookup("mutual_choice").for_k(8))
    sae, _ = sae.calibrate(lambda: iter([inputs(400, seed=5)]), 8)
    source = ap.TensorSource(inputs(600), torch.arange(600) // 5, heldout=0.5)
    words = Classes(["even", "odd"], np.arange(120) % 2)
    ease = np.arange(120.0)
    tokens = adaptivity(sae, source, of_documents={"kind": words, "ease": ease})
    assert list(tokens.covariates) == ["position", "length", "error", "kind", "ease"]
    x = torch.cat([batch.x for batch in source.blocks("evaluate")])
    assert np.array_equal(tokens.k, sae.encode(x).counts().numpy())
    assert np.array_equal(tokens.covariates["position"], tokens.position)
    assert np.array_equal(tokens.covariates["ease"], tokens.document)
    found = {one.covariate: one for one in tokens.relations()}
    assert found["length"].rho is not None and found["ease"].rho is not None
    assert found["length"].rho.mean > 0.5 and found["length"].rho.excludes_zero, "long rows pass more thresholds"
    assert abs(found["ease"].rho.mean) < 0.3


def test_the_dimension_is_that_of_some_tokens_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "POINTS", 30)
    monkeypatch.setattr(rows, "POOL", 150)
    sae = make_sae(AllocatorConfig.lookup("relu").for_k(8)).freeze()
    source = ap.TensorSource(inputs(600), torch.arange(600) // 5, heldout=0.5)
    found, x = dimensions(source, 10), torch.cat([batch.x for batch in source.blocks("evaluate")])
    there = np.flatnonzero(~np.isnan(found))
    assert len(found) == len(x) and len(there) == 30 and there[0] == 0 and there[-1] == len(x) - 1
    pool = np.linspace(0, len(x) - 1, 150).astype(int)
    want = local_dimension(x[pool], torch.from_numpy(np.searchsorted(pool, there)), 10)
    assert np.array_equal(found[there], want.numpy())
    assert np.isnan(dimensions(source, len(x))).all()
    with pytest.raises(InvalidInput, match="2 neighbours were asked for among 150"):
        dimensions(source, 2)
    some = adaptivity(sae, source, of_rows={"dimension": dimensions(source, 10, every=4)}, every=4)
    assert np.isfinite(some.covariates["dimension"]).sum() == 30, (
        "all points are among the contexts that are read"
    )


def test_surprisal_is_that_of_the_token_of_each_row(tmp_path: Path) -> None:
    speaker = report_kit.speaker()
    source = report_kit.store(tmp_path / "store", speaker)
    sae = make_sae(AllocatorConfig.lookup("relu").for_k(8), d_in=source.d_in).freeze()
    want, first = [], []
    for one in source.contexts("evaluate", 1):
        logits = speaker.model(one.input_ids, one.attention_mask).logits.double().log_softmax(-1)
        for column in one.keep[0].nonzero().flatten().tolist():
            loss = float(-logits[0, column - 1, one.input_ids[0, column]].detach()) if column else math.nan
            want.append(loss)
            first.append(column == 0)
    of_rows = {"token_surprisal": surprisals(source, speaker)}
    np.testing.assert_allclose(of_rows["token_surprisal"], want, rtol=1e-5)
    assert np.array_equal(np.isnan(want), first)
    limit = len(want) // 2
    for every in (1, 2):
        tokens = adaptivity(sae, source, of_rows=of_rows, every=every, limit=limit)
        found = tokens.covariates["token_surprisal"]
        assert isinstance(found, np.ndarray) and len(found) == len(tokens.k)
        where = np.flatnonzero(np.isin(_keys(source, limit), tokens.document * 10**6 + tokens.position))
        np.testing.assert_allclose(found, np.array(want)[where], rtol=1e-5)
    with pytest.raises(InvalidInput, match=f"'few' has 3 numbers for {len(want):,} rows; give one for each"):
        adaptivity(sae, source, of_rows={"few": np.zeros(3)})
    with pytest.raises(InvalidInput, match="'length' is the name of two covariates"):
        adaptivity(sae, source, of_rows={"length": np.zeros(len(want))})
    with pytest.raises(InvalidInput, match="predicts no next token"):
        surprisals(source, dataclasses.replace(speaker, causal=False))
    with pytest.raises(InvalidInput, match="a TensorSource has no contexts to feed it"):
        surprisals(ap.TensorSource(inputs(600)), speaker)


def _keys(source: ap.StoreSource, limit: int) -> np.ndarray:
    """[rows] a number for each row of the part that tells it from all others."""
    batches = list(source.blocks("evaluate", limit))
    return torch.cat([batch.document * 10**6 + batch.position for batch in batches]).numpy()


def test_refusals() -> None:
    sae = make_sae(AllocatorConfig.lookup("relu").for_k(8)).freeze()
    source = ap.TensorSource(inputs(600), heldout=0.5)
    with pytest.raises(InvalidInput, match="give the module that it was trained on"):
        adaptivity(sae, ap.TensorSource(inputs(600, 12), heldout=0.5))
    with pytest.raises(InvalidInput, match="each 0-th context"):
        adaptivity(sae, source, every=0)
    with pytest.raises(InvalidInput, match="gave no rows"):
        adaptivity(sae, source, limit=0)
    with pytest.raises(InvalidInput, match="a TensorSource of width 24 cannot be probed"):
        register_probes(sae, source, Classes(["a"], np.zeros(10, np.int64)))
