"""Gate and magnitude of a pre-activation, and their gradients in one pass (Gated, arXiv 2404.16014)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .row_blocks import row_blocks


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pi: Tensor, b_enc: Tensor, gain: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pi, b_enc, gain, b_mag)
        z, gate = torch.empty_like(pi), torch.empty_like(pi)
        for at in row_blocks(pi):
            torch.clamp(pi[at], min=0, out=gate[at])
            magnitude = ((pi[at] - b_enc).mul_(gain).add_(b_mag)).clamp_(min=0)
            torch.mul(magnitude, pi[at] > 0, out=z[at])
        return z, gate

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_gate: Tensor) -> tuple[Tensor, ...]:
        pi, b_enc, gain, b_mag = ctx.saved_tensors
        d_pi = torch.empty_like(pi)
        d_b_enc, d_gain, d_b_mag = (torch.zeros_like(t) for t in (b_enc, gain, b_mag))
        for at in row_blocks(pi):
            linear, opened = pi[at] - b_enc, pi[at] > 0
            passed = grad_z[at] * opened.logical_and(linear * gain + b_mag > 0)
            d_b_mag += passed.sum_to_size(b_mag.shape)
            d_gain += linear.mul_(passed).sum_to_size(gain.shape)
            through = passed.mul_(gain)
            d_b_enc -= through.sum_to_size(b_enc.shape)
            torch.addcmul(through, grad_gate[at], opened.to(pi.dtype), out=d_pi[at])
        return d_pi, d_b_enc, d_gain, d_b_mag


def gated(pi: Tensor, b_enc: Tensor, gain: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor]:
    """``z = 1[pi > 0] · ReLU(gain (pi - b_enc) + b_mag)``, and the gate ``ReLU(pi)``; differentiable in all four.

    Args:
        pi: [n, d_sae] with the others [d_sae], or [nnz] with the others [nnz].
    """
    return _Gated.apply(pi, b_enc, gain, b_mag)  # type: ignore[no-any-return]
