"""One step: the gradient of the loss, projected, clipped, Adam, and back onto the sphere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import apportion as ap
from apportion.schedules import WarmupDecay
from apportion.training import Run, train_step

from .training_kit import D_IN, config

N_STEPS = 100
PLAIN = ({"kind": "reconstruction"},)


def batch(seed: int, n: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D_IN, generator=generator) + 0.5


def clock(step: int) -> ap.Clock:
    return ap.Clock(step, N_STEPS, step * 48)


def test_warmup_and_decay_follow_their_formula() -> None:
    lr = WarmupDecay(peak=2.0, warmup=0.05, decay=0.2)
    found = [lr(clock(step)) for step in range(N_STEPS)]
    expected = [2 * (s + 1) / 5 for s in range(5)] + [2.0] * 75 + [2 * (100 - s) / 20 for s in range(80, 100)]
    assert found == pytest.approx(expected)
    assert min(found) > 0


def test_a_step_uses_the_rate_of_its_time() -> None:
    run = Run(config(lr={"kind": "warmup_decay", "peak": 1e-2}), batch(0).mean(0))
    for step in (0, 2, 50, 99):
        before = run.sae.b_dec.detach().clone()
        result = train_step(run, batch(step), clock(step))
        assert result.lr == run.config.lr(clock(step))
        # Adam's first step moves every coordinate by the learning rate, whatever the gradient's size.
        if step == 0:
            moved = (run.sae.b_dec.detach() - before).abs()
            assert moved.max() == pytest.approx(result.lr, rel=1e-3)


def naive_loss(x: Tensor, weight: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    """Top k per row, dense."""
    pre = (x - b_dec) @ weight.T + b_enc
    chosen = pre.topk(k, dim=1)
    z = torch.zeros_like(pre).scatter(1, chosen.indices, chosen.values.relu())
    return (x - z @ W_dec - b_dec).square().sum(1).mean()


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_steps_equal_a_naive_dense_training(clip: float) -> None:
    run = Run(config(objectives=PLAIN, clip=clip, lr={"kind": "constant", "value": 1e-2}), batch(9).mean(0))
    sae = run.sae
    naive = [t.detach().double().requires_grad_() for t in (sae.encoder.weight, sae.b_enc, sae.W_dec, sae.b_dec)]
    adam = torch.optim.Adam(naive, lr=1e-2)
    for step in range(6):
        x = batch(step)
        result = train_step(run, x, clock(step))
        loss = naive_loss(x.double(), *naive, k=4)
        for tensor, gradient in zip(naive, torch.autograd.grad(loss, naive), strict=True):
            tensor.grad = gradient
        W_dec = naive[2]
        W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec.detach()
        norm = torch.cat([tensor.grad.flatten() for tensor in naive]).norm()
        for tensor in naive:
            tensor.grad *= min(1.0, clip / norm.item())
        adam.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        assert float(result.losses["reconstruction"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(result.grad_norm) == pytest.approx(norm.item(), rel=1e-4)
    for mine, theirs in zip((sae.encoder.weight, sae.b_enc, sae.W_dec, sae.b_dec), naive, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach().float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["token_choice", "mutual_choice"])
def test_directions_stay_on_the_sphere_and_gradients_tangent(kind: str) -> None:
    run = Run(config(kind, lr={"kind": "constant", "value": 0.05}), batch(9).mean(0))
    for step in range(12):
        directions = run.sae.W_dec.detach().clone()
        train_step(run, batch(step), clock(step))
        gradient = run.sae.W_dec.grad
        assert gradient is not None and float(gradient.norm()) > 0
        parallel = (gradient * directions).sum(1).abs()
        assert float(parallel.max()) <= 1e-6 * max(1.0, float(gradient.norm(dim=1).max()))
        lengths = run.sae.W_dec.detach().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
        assert not torch.equal(directions, run.sae.W_dec)


def test_clip_bounds_the_whole_gradient() -> None:
    for clip, bites in ((1e-3, True), (1e6, False)):
        run = Run(config(clip=clip), batch(9).mean(0))
        result = train_step(run, batch(0), clock(0))
        parameters = list(run.sae.parameters())
        norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
        assert (float(result.grad_norm) > clip) == bites
        assert float(norm) == pytest.approx(min(clip, float(result.grad_norm)), rel=1e-3)


def test_bf16_trains_and_keeps_parameters_in_float32() -> None:
    losses = {}
    for precision in ("float32", "bf16"):
        run = Run(
            config(d_sae=128, precision=precision, lr={"kind": "constant", "value": 3e-3}), batch(9).mean(0)
        )
        results = [float(train_step(run, batch(s % 4), clock(s)).losses["reconstruction"]) for s in range(60)]
        losses[precision] = results
        moments = [value for state in run.optimizer.state.values() for value in state.values()]
        assert {t.dtype for t in (*run.sae.parameters(), *moments)} == {torch.float32}
        assert results[-1] < 0.5 * results[0]
    assert losses["bf16"] != losses["float32"], "the option changed nothing"
    assert losses["bf16"][-1] == pytest.approx(losses["float32"][-1], rel=0.2)


def test_a_step_leaves_its_input_and_the_caller_alone() -> None:
    run, x = Run(config(), batch(9).mean(0)), batch(0)
    kept, state = x.clone(), torch.get_rng_state()
    train_step(run, x, clock(0))
    assert torch.equal(x, kept) and x.grad is None
    assert torch.equal(torch.get_rng_state(), state)
