"""What k follows on a source without contexts, and what the analysis refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import apportion as ap
from apportion import analysis
from apportion.activations import LoadedModel
from apportion.allocators import AllocatorConfig
from apportion.analysis import _losses, adaptivity, register_probes
from apportion.errors import InvalidInput
from apportion.metrics import Classes, local_dimension

from .conftest import inputs, make_sae
from .test_downstream import D, Toy, contexts_of
from .test_evaluate import Texts, rows


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
    monkeypatch.setattr(analysis, "POINTS", 30)
    monkeypatch.setattr(analysis, "POOL", 150)
    sae = make_sae(AllocatorConfig.lookup("relu").for_k(8)).freeze()
    source = ap.TensorSource(inputs(600), torch.arange(600) // 5, heldout=0.5)
    tokens = adaptivity(sae, source, neighbours=10)
    found, x = tokens.covariates["dimension"], torch.cat([batch.x for batch in source.blocks("evaluate")])
    assert isinstance(found, np.ndarray) and len(found) == len(x) == len(tokens.k)
    there = np.flatnonzero(~np.isnan(found))
    assert len(there) == 30 and there[0] == 0 and there[-1] == len(x) - 1
    pool = np.linspace(0, len(x) - 1, 150).astype(int)
    want = local_dimension(x[pool], torch.from_numpy(np.searchsorted(pool, there)), 10)
    assert np.array_equal(found[there], want.numpy())
    assert "dimension" not in adaptivity(sae, source, neighbours=len(x)).covariates
    with pytest.raises(InvalidInput, match="2 neighbours were asked for among 150"):
        adaptivity(sae, source, neighbours=2)


def test_surprisal_is_that_of_the_token_of_each_row() -> None:
    torch.manual_seed(0)
    model = LoadedModel(Toy().eval(), None, "toy", causal=True)
    contexts = [contexts_of(lengths, seed) for seed, lengths in enumerate(((12, 9, 5), (7, 3)))]
    n = sum(int(one.keep.sum()) for one in contexts)
    source = Texts(rows(40, D), contexts)
    tokens = _losses(source, model, "evaluate", None)
    want = []
    for one in contexts:
        logits = model.model(one.input_ids, one.attention_mask).logits.double().log_softmax(-1)
        for row, column in one.keep.nonzero().tolist():
            loss = -logits[row, column - 1, one.input_ids[row, column]] if column else torch.tensor(math.nan)
            want.append(float(loss.detach()))
    assert len(tokens) == n
    np.testing.assert_allclose(tokens, want, rtol=1e-5)
    sae = make_sae(AllocatorConfig.lookup("relu").for_k(8)).freeze()
    with pytest.raises(InvalidInput, match="predicts no next token"):
        adaptivity(sae, ap.TensorSource(inputs(600)), model=LoadedModel(Toy(), None, "toy", causal=False))
    with pytest.raises(InvalidInput, match="a TensorSource has no contexts to feed it"):
        adaptivity(sae, ap.TensorSource(inputs(600)), model=model)


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
