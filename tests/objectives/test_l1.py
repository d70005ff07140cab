"""The L1 norm of the code over the length of the input."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import TokenChoiceConfig
from apportion.firing import Firing
from apportion.objectives import L1Config

from ..conftest import inputs, make_sae


def test_it_is_the_formula_and_shrinks_values():
    sae, x = make_sae(TokenChoiceConfig.for_k(5)), inputs(30)
    trace = sae.trace(x)
    loss = L1Config(weight=0.3).build()(trace, sae.dictionary(), Firing(96))
    want = 0.3 * trace.code.to_dense().detach().sum(1).mean() / x.norm(dim=1).mean()
    assert float(loss.detach()) == pytest.approx(float(want), rel=1e-5)
    loss.backward()
    assert (sae.encoder.bias.grad >= 0).all() and sae.encoder.bias.grad.any()


def test_inputs_of_no_size_have_none():
    sae = make_sae(TokenChoiceConfig.for_k(5))
    assert L1Config().build()(sae.trace(torch.zeros(3, 24)), sae.dictionary(), Firing(96)) is None
