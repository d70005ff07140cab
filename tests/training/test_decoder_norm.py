"""Gradients of directions lose what is parallel to them, and directions come back to unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from apportion.training.decoder_norm import project_gradient, renormalise


def test_what_is_parallel_is_taken_off():
    generator = torch.Generator().manual_seed(0)
    W_dec = F.normalize(torch.randn(50, 16, generator=generator, dtype=torch.float64), dim=1).requires_grad_()
    gradient = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    W_dec.grad = gradient.clone()
    project_gradient(W_dec)
    direction = W_dec.detach()
    want = gradient - (gradient * direction).sum(1, keepdim=True) * direction
    torch.testing.assert_close(W_dec.grad, want, rtol=1e-12, atol=1e-12)
    assert float((W_dec.grad * direction).sum(1).abs().max()) < 1e-12


def test_directions_come_back_to_unit_length_and_zero_stays_zero():
    W_dec = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    renormalise(W_dec)
    torch.testing.assert_close(W_dec, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
