"""The straight-through step against the papers' formulas, over the whole window."""

from __future__ import annotations

import torch

from apportion.ops.ste import jump

WIDTH = 0.5


def entries():
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(4000, generator=generator, dtype=torch.float64) + 0.1
    pi = theta + torch.randn(4000, generator=generator, dtype=torch.float64)
    grad = torch.randn(4000, generator=generator, dtype=torch.float64)
    return pi.requires_grad_(), theta.requires_grad_(), grad


def test_jump_is_the_published_formula_below_the_threshold_too():
    pi, theta, grad = entries()
    z, _ = jump(pi, theta, WIDTH)
    above = (pi > theta).double()
    inside = ((pi - theta).abs() < WIDTH / 2).double()
    assert torch.equal(z, pi * above)
    d_pi, d_theta = torch.autograd.grad(z, (pi, theta), grad)
    torch.testing.assert_close(d_pi, grad * above)
    torch.testing.assert_close(d_theta, -grad * theta / WIDTH * inside)
    below = (pi < theta) & (inside > 0)
    assert below.sum() > 100 and (d_theta[below] != 0).all() and (d_pi[below] == 0).all()


def test_the_count_gives_the_threshold_a_window_and_the_entry_nothing():
    pi, theta, _ = entries()
    _, count = jump(pi, theta, WIDTH)
    inside = ((pi - theta).abs() < WIDTH / 2).double()
    assert int(count) == int((pi > theta).sum())
    d_pi, d_theta = torch.autograd.grad(3 * count, (pi, theta))
    assert not d_pi.any()
    torch.testing.assert_close(d_theta, -3 / WIDTH * inside)


def test_a_matrix_with_a_threshold_per_feature_is_the_list_of_its_entries():
    generator = torch.Generator().manual_seed(5)
    pi = torch.randn(3000, 70, generator=generator, dtype=torch.float64)
    theta = torch.rand(70, generator=generator, dtype=torch.float64)
    grad = torch.randn(3000, 70, generator=generator, dtype=torch.float64)
    found = []
    for listed in (False, True):
        own = [pi.clone().requires_grad_(), theta.clone().requires_grad_()]
        z, count = jump(own[0].reshape(-1), own[1].repeat(3000), WIDTH) if listed else jump(*own, WIDTH)
        found.append(
            [z.reshape(-1), count, *torch.autograd.grad((z.reshape(grad.shape) * grad).sum() + 2 * count, own)]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_window_estimates_the_derivative_of_the_expected_count():
    """Averaged over a smooth density, the gradient is that of the probability of exceeding the threshold."""
    generator = torch.Generator().manual_seed(1)
    pi = torch.randn(4_000_000, generator=generator, dtype=torch.float64)
    theta = torch.full_like(pi, 0.7).requires_grad_()
    _, count = jump(pi, theta, 0.2)
    slope = torch.autograd.grad(count / len(pi), theta)[0].sum()
    density = torch.exp(torch.tensor(-(0.7**2) / 2)) / (2 * torch.pi) ** 0.5
    assert abs(float(slope + density)) < 0.005
