"""The straight-through steps against the papers' formulas, over the whole window."""

from __future__ import annotations

import torch

from apportion.ops.ste import jump, step

WIDTH = 0.5


def entries():
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(4000, generator=generator, dtype=torch.float64) + 0.1
    pi = theta + torch.randn(4000, generator=generator, dtype=torch.float64)
    grad = torch.randn(4000, generator=generator, dtype=torch.float64)
    return pi.requires_grad_(), theta.requires_grad_(), grad


def test_jump_is_the_published_formula_below_the_threshold_too():
    pi, theta, grad = entries()
    z = jump(pi, theta, WIDTH)
    above = (pi > theta).double()
    inside = ((pi - theta).abs() < WIDTH / 2).double()
    assert torch.equal(z, pi * above)
    d_pi, d_theta = torch.autograd.grad(z, (pi, theta), grad)
    torch.testing.assert_close(d_pi, grad * above)
    torch.testing.assert_close(d_theta, -grad * theta / WIDTH * inside)
    below = (pi < theta) & (inside > 0)
    assert below.sum() > 100 and (d_theta[below] != 0).all() and (d_pi[below] == 0).all()


def test_step_gives_the_threshold_a_window_and_the_entry_nothing():
    pi, theta, grad = entries()
    found = step(pi, theta, WIDTH)
    inside = ((pi - theta).abs() < WIDTH / 2).double()
    assert torch.equal(found, (pi > theta).double())
    d_pi, d_theta = torch.autograd.grad(found, (pi, theta), grad, allow_unused=True)
    assert d_pi is None
    torch.testing.assert_close(d_theta, -grad / WIDTH * inside)


def test_the_window_estimates_the_derivative_of_the_expected_count():
    """Averaged over a smooth density, the gradient is that of the probability of exceeding the threshold."""
    generator = torch.Generator().manual_seed(1)
    pi = torch.randn(4_000_000, generator=generator, dtype=torch.float64)
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(step(pi, theta.expand(pi.shape), 0.2).mean(), theta)
    density = torch.exp(-(theta.detach() ** 2) / 2) / (2 * torch.pi) ** 0.5
    assert abs(float(slope + density)) < 0.005
