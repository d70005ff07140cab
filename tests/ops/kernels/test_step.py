"""A whole training step through the kernels against one through torch: the gradients that it leaves behind."""

from __future__ import annotations

import pytest
import torch

from apportion.clock import Clock
from apportion.ops import kernels
from apportion.recipes import find_recipe
from apportion.training import Run, train_step

from ...conftest import inputs


def gradients(recipe: str, device: str) -> list[torch.Tensor]:
    x = inputs(7, d_in=6).to(device)
    run = Run(find_recipe(recipe).make(6, 20, 3, 0), x.mean(0))
    train_step(run, x, Clock(step=5, n_steps=10))
    return [p.grad.cpu() for p in run.sae.parameters()]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # meant, see test_soft
@pytest.mark.parametrize("recipe", ["token_choice", "feature_choice", "soft_sae"])
def test_a_step_leaves_the_same_gradients(recipe, device, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(kernels, "on_card", lambda t: False)
        want = gradients(recipe, "cpu")
    got = gradients(recipe, device)
    for g, w in zip(got, want, strict=True):
        assert w.any()
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)
