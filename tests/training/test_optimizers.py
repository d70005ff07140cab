"""Each optimiser moves by the schedule's rate, and Adafactor by its paper's formula with hardly any state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.recipes import adjusted, find_recipe, recipe_names
from apportion.training import Run, train_step
from apportion.training.optimizers import build_optimizer, set_lr, state_bytes

from .test_step import batch, clock
from .training_kit import D_IN, config

BOTH = ("adam", "adafactor")


def parameters() -> list[nn.Parameter]:
    """A matrix far above unit size, one far below, a vector at zero and a number."""
    generator = torch.Generator().manual_seed(0)
    large, small = 50 * torch.randn(6, 4, generator=generator), 1e-3 * torch.randn(5, 3, generator=generator)
    return [nn.Parameter(tensor) for tensor in (large, small, torch.zeros(7), torch.tensor(2.0))]


def squared(gradient: Tensor) -> tuple[Tensor, ...]:
    """What Adafactor averages: means of the squares over rows and over columns, or all squares of a vector."""
    square = gradient.square()
    return (square.mean(1, keepdim=True), square.mean(0, keepdim=True)) if square.ndim > 1 else (square,)


def test_adafactor_follows_its_formula_at_the_rate_of_the_schedule() -> None:
    mine = parameters()
    theirs = [parameter.detach().double() for parameter in mine]
    averages: list[tuple[Tensor, ...]] = [()] * len(mine)
    optimizer = build_optimizer(config(optimizer="adafactor"), mine)
    generator = torch.Generator().manual_seed(1)
    for step, lr in enumerate((1e-2, 3e-2, 3e-2, 1e-3, 0.5), start=1):
        for i, parameter in enumerate(mine):
            # Far below torch's own eps, as clipped gradients of a large dictionary are.
            parameter.grad = 1e-6 * torch.randn(parameter.shape, generator=generator)
            found, share = squared(parameter.grad.double()), step**-0.8
            averages[i] = tuple(
                old + share * (new - old) for old, new in zip(averages[i] or found, found, strict=True)
            )
            rows, *columns = averages[i]
            moment = rows * columns[0] / rows.mean() if columns else rows
            update = parameter.grad.double() / moment.sqrt()
            theirs[i] -= lr * update / max(1.0, float(update.square().mean().sqrt()))
        set_lr(optimizer, lr)
        optimizer.step()
        for parameter, expected in zip(mine, theirs, strict=True):
            torch.testing.assert_close(parameter.detach(), expected.float(), atol=1e-6, rtol=1e-5)


def test_its_rate_holds_for_any_size_and_in_long_runs() -> None:
    mine = parameters()
    start = [parameter.detach().clone() for parameter in mine]
    optimizer = build_optimizer(config(optimizer="adafactor"), mine)
    for parameter in mine:
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 3e-3)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].fill_(1e7)  # torch's own bound on the rate would be 3e-4
    optimizer.step()
    for before, parameter in zip(start, mine, strict=True):
        torch.testing.assert_close(before - parameter, torch.full_like(before, 6e-3), atol=2e-5, rtol=0)


def test_adafactor_keeps_hardly_anything() -> None:
    d_sae = 512
    kept = {}
    for name in BOTH:
        run = Run(config(d_sae=d_sae, optimizer=name), batch(9).mean(0))
        train_step(run, batch(0), clock(0))
        kept[name] = state_bytes(run.optimizer)
    steps = 4 * 4  # one number for each of the four parameters
    vectors = 4 * (d_sae + D_IN)
    assert kept["adam"] == 2 * (4 * 2 * d_sae * D_IN + vectors) + steps
    assert kept["adafactor"] == 2 * vectors + vectors + steps


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains_with_adafactor(recipe: str) -> None:
    made = adjusted(find_recipe(recipe).make(D_IN, 64, 4, 0), recipe, [f"{recipe}.optimizer=adafactor"], [recipe])
    run = Run(made, batch(9).mean(0))
    before = run.sae.W_dec.detach().clone()
    for step in range(4):
        train_step(run, batch(step), clock(step), target=batch(step)[:, 0])
    assert all(bool(parameter.isfinite().all()) for parameter in run.sae.parameters())
    assert not torch.equal(before, run.sae.W_dec)


def test_it_learns_as_well_as_adam() -> None:
    losses = {}
    for name in BOTH:
        run = Run(config(d_sae=128, optimizer=name, lr={"kind": "constant", "value": 3e-3}), batch(9).mean(0))
        losses[name] = [
            float(train_step(run, batch(s % 4), clock(s)).losses["reconstruction"]) for s in range(60)
        ]
    assert losses["adafactor"][-1] < 0.5 * losses["adafactor"][0]
    assert losses["adafactor"][-1] == pytest.approx(losses["adam"][-1], rel=0.3)
    assert losses["adafactor"] != losses["adam"], "the option changed nothing"
