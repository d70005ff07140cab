"""Rules in which everything above zero fires start where their reconstruction is near the input."""

from __future__ import annotations

import pytest
import torch

import apportion as ap
from apportion.clock import Clock
from apportion.recipes import adjusted
from apportion.training import Run, RunConfig

D_IN, D_SAE = 64, 1024
RECIPES = ("relu_l1", "p_anneal", "jump_relu", "gated")


def start(config: RunConfig) -> tuple[float, float, ap.SAE]:
    """Features per token and FVU of the first step on rows without structure."""
    x = torch.randn(2048, D_IN, generator=torch.Generator().manual_seed(3))
    sae = Run(config, torch.zeros(D_IN)).sae
    with torch.no_grad():
        trace = sae.trace(x, Clock(0, 100))
    return trace.code.nnz / len(x), float((trace.x_hat - x).square().sum() / x.square().sum()), sae


@pytest.mark.parametrize("recipe", RECIPES)
def test_about_as_many_fire_as_there_are_dimensions_and_the_error_is_below_that_of_nothing(recipe):
    config = ap.recipe(recipe).make(D_IN, D_SAE, 8, 0)
    l0, fvu, _ = start(config)
    if recipe == "jump_relu":  # its thresholds come on top
        assert 0.4 * D_IN < l0 < D_IN
    else:
        assert l0 == pytest.approx(D_IN, rel=0.1)
    assert fvu < 1
    assert start(config.model_copy(update={"b_enc": 0.0}))[1] > 20


def test_the_magnitude_of_a_gate_starts_as_the_gate():
    sae = start(ap.recipe("gated").make(D_IN, D_SAE, 8, 0))[2]
    trace = sae.trace(torch.randn(64, D_IN, generator=torch.Generator().manual_seed(4)))
    torch.testing.assert_close(trace.code.values, trace.notes["gate"].reshape(-1), rtol=1e-5, atol=1e-5)


def test_a_rule_starts_so_by_any_name_it_is_given():
    recipe = ap.recipe("relu_l1").make(D_IN, D_SAE, 8, 0)
    assert ap.recipe("relu").make(D_IN, D_SAE, 8, 0).b_enc == recipe.b_enc < 0
    nested = ap.recipe("matryoshka").make(D_IN, D_SAE, 8, 0)
    assert nested.b_enc == 0
    over_relu = ['matryoshka.allocator={"kind": "relu", "k": 8}']
    assert adjusted(nested, "matryoshka", over_relu, ["matryoshka"]).b_enc == recipe.b_enc
    own = adjusted(nested, "matryoshka", [*over_relu, "matryoshka.b_enc=-0.5"], ["matryoshka"])
    assert own.b_enc == -0.5
    assert adjusted(nested, "matryoshka", [*over_relu, "matryoshka.b_enc=0"], ["matryoshka"]).b_enc == 0
    assert adjusted(recipe, "relu_l1", ["relu_l1.b_enc=0"], ["relu_l1"]).b_enc == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_runs_narrow_dictionaries_and_older_configs_start_without_a_bias(recipe):
    made = ap.recipe(recipe)
    for paper in made.papers.values():
        assert paper.make(D_IN, D_SAE, 8, 0).b_enc == 0
    assert made.make(D_IN, 2 * D_IN, 8, 0).b_enc == 0
    older = made.make(D_IN, D_SAE, 8, 0).model_dump(mode="json")
    assert older.pop("b_enc") < -1
    assert RunConfig.parse(older, "older").b_enc == 0
