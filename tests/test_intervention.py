"""Clamping a feature, against a naive reference that walks over tokens and lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from apportion.allocators import AllocatorConfig
from apportion.code import Code
from apportion.errors import InvalidConfig, InvalidInput
from apportion.sae import SAE

from .conftest import inputs, make_sae

RULES = ["token_choice", "mutual_choice", "feature_choice", "soft_top_k", "relu", "gated"]
D_SAE = 96


def frozen(rule: str, dtype: torch.dtype = torch.float64) -> SAE:
    sae = make_sae(AllocatorConfig.lookup(rule).for_k(8), d_sae=D_SAE, dtype=dtype).freeze()
    fitted, _ = sae.calibrate(lambda: iter([inputs(400, seed=5, dtype=dtype)]), 8)
    return fitted


def usual(sae: SAE, x: Tensor) -> int:
    """A feature that some tokens have and some have not."""
    return int((sae.encode(x).firings() - len(x) // 2).abs().argmin())


def naive_keep(sae: SAE, x: Tensor, feature: int, value: float) -> Tensor:
    """[n, d_sae]: each token's code as a list of places in its whole order."""
    trace = sae.read(x)
    dense, order = trace.code.to_dense().detach().clone(), sae.order(trace, sae.d_sae)
    for code, features, values in zip(dense, *(column.tolist() for column in order), strict=True):
        places = [(f, v) for f, v in zip(features, values, strict=True) if v > 0]
        inside = [f for f, _ in places if code[f] > 0]
        outside = [(f, v) for f, v in places if code[f] == 0]
        had = bool(code[feature] > 0)
        code[feature] = value
        if value > 0 and not had and inside:
            code[inside[-1]] = 0
        if value == 0 and had and outside:
            code[outside[0][0]] = outside[0][1]
    return dense


@pytest.mark.parametrize("value", [0, 1.75])
@pytest.mark.parametrize("rule", RULES)
def test_keep_is_the_naive_swap(rule: str, value: float) -> None:
    sae, x = frozen(rule), inputs(60, dtype=torch.float64)
    x[0] = (sae.b_dec - 100 * sae.encoder.weight.mean(0)).detach()
    feature = usual(sae, x)
    before, (_, code) = sae.encode(x), sae.intervene(x, feature, value, k="keep")
    assert torch.equal(code.to_dense(), naive_keep(sae, x, feature, value))
    assert ((code.indices[1:] > code.indices[:-1]) | (code.rows[1:] > code.rows[:-1])).all(), "canonical order"
    had = before.to_dense()[:, feature] > 0
    assert 0 < had.sum() < len(x), "both cases are there"
    if value:
        assert torch.equal(code.counts(), before.counts().clamp(min=1))


@pytest.mark.parametrize("rule", ["token_choice", "mutual_choice"])
def test_the_next_feature_makes_up_for_the_one_taken_out(rule: str) -> None:
    sae, x = frozen(rule), inputs(60, dtype=torch.float64)
    trace = sae.read(x)
    positive = torch.bincount(trace.pre.above(0.0).rows, minlength=len(x))
    spare = positive > trace.code.counts()
    code = sae.intervene(x, usual(sae, x), 0, k="keep").code
    assert spare.any() and torch.equal(code.counts()[spare], trace.code.counts()[spare])


@pytest.mark.parametrize("value", [0, 1.75])
@pytest.mark.parametrize("rule", [*RULES, "jump_relu"])
def test_recompute_edits_one_column_and_moves_along_one_direction(rule: str, value: float) -> None:
    sae, x = frozen(rule), inputs(60, dtype=torch.float64)
    feature = usual(sae, x)
    before = sae.encode(x).to_dense()
    want = before.clone()
    want[:, feature] = value
    x_hat, code = sae.intervene(x, feature, value, k="recompute")
    assert torch.equal(code.to_dense(), want)
    moved = (value - before[:, feature, None]) * sae.W_dec[feature]
    assert torch.allclose(x_hat, x + moved, rtol=0, atol=1e-12)
    bare = sae.intervene(x, feature, value, error=False)
    assert torch.equal(bare.code.to_dense(), want), "recompute is what happens unless told otherwise"
    assert torch.allclose(bare.x_hat, want @ sae.W_dec + sae.b_dec, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", ["keep", "recompute"])
def test_no_change_gives_x_to_the_bit(k: str) -> None:
    sae = frozen("token_choice", torch.float32)
    x = inputs(24, dtype=torch.float32).reshape(2, 3, 4, 24)
    absent = int((sae.encode(x).firings() == 0).nonzero()[0])
    x_hat, code = sae.intervene(x, absent, 0, k=k)
    assert torch.equal(x_hat, x)
    assert code.shape == (2, 3, 4) and torch.equal(code.to_dense(), sae.encode(x).to_dense())


def test_a_gradient_passes_through_what_was_not_edited() -> None:
    sae, x = frozen("token_choice"), inputs(5, dtype=torch.float64).requires_grad_()
    sae.intervene(x, 3, 2.0, k="keep", error=False).x_hat.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", range(5))
def test_editing_a_code_is_editing_its_matrix(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.rand(7, 11, generator=g) * (torch.rand(7, 11, generator=g) < 0.4)
    places = torch.randperm(77, generator=g)[:20]
    rows, features = places // 11, places % 11
    values = torch.rand(20, generator=g) * (torch.rand(20, generator=g) < 0.5)
    code = Code.from_dense(z)
    edited = code.edited(rows, features, values)
    assert torch.equal(code.to_dense(), z), "the old one stays"
    z[rows, features] = values
    want = Code.from_dense(z)
    for name in ("values", "indices", "offsets"):
        assert torch.equal(getattr(edited, name), getattr(want, name))


def test_numbers_of_other_libraries_are_numbers() -> None:
    sae, x = frozen("token_choice"), inputs(3, dtype=torch.float64)
    want = sae.intervene(x, 3, 1.5).x_hat
    for feature, value in ((np.int64(3), np.float32(1.5)), (torch.tensor(3), torch.tensor(1.5))):
        assert torch.equal(sae.intervene(x, feature, value).x_hat, want)  # type: ignore[arg-type]


def test_refusals() -> None:
    sae, x = frozen("token_choice"), inputs(3, dtype=torch.float64)
    for feature in (-1, D_SAE, True, 1.0, torch.tensor(1.5), np.int64(D_SAE), torch.tensor(True)):
        with pytest.raises(InvalidInput, match="is no whole number from 0 to 95"):
            sae.intervene(x, feature, 1.0)  # type: ignore[arg-type]
    for value in (-0.1, math.nan, math.inf, "1", 10**400, np.complex64(1), torch.ones(2), np.ones(2), None):
        with pytest.raises(InvalidInput, match="at least 0"):
            sae.intervene(x, 0, value)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="'hold' says nothing"):
        sae.intervene(x, 0, 1.0, k="hold")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="do not fit this SAE"):
        sae.intervene(x[:, :-1], 0, 1.0)
    training = make_sae(AllocatorConfig.lookup("mutual_choice").for_k(8))
    with pytest.raises(InvalidInput, match="freeze the SAE first"):
        training.intervene(inputs(3), 0, 1.0, k="keep")
    assert sae.intervene(x[:0], 0, 1.0, k="keep").x_hat.shape == (0, 24)
