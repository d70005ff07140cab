"""What k follows on a source without contexts, and what the analysis refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import apportion as ap
from apportion.allocators import AllocatorConfig
from apportion.analysis import adaptivity, register_probes
from apportion.errors import InvalidInput
from apportion.metrics import Classes

from .conftest import inputs, make_sae


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
