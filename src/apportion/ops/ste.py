"""A step whose gradient is a window around it: how a threshold is learned (JumpReLU, arXiv 2407.14435).

The window's sums run over all of it, entries below the threshold too: these are not in the code and carry half of
the threshold's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .row_blocks import row_blocks


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pi: Tensor, theta: Tensor, width: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pi, theta)
        ctx.width = width
        z, count = torch.empty_like(pi), pi.new_zeros(())
        for at in row_blocks(pi):
            above = pi[at] > theta
            torch.mul(pi[at], above, out=z[at])
            count += above.sum()
        return z, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_count: Tensor) -> tuple[Tensor, Tensor, None]:
        pi, theta = ctx.saved_tensors
        d_pi, d_theta = torch.empty_like(pi), torch.zeros_like(theta)
        for at in row_blocks(pi):
            torch.mul(grad[at], pi[at] > theta, out=d_pi[at])
            inside = (pi[at] - theta).abs_() < ctx.width / 2
            found = (grad[at] * theta).add_(grad_count).mul_(inside)
            d_theta.sub_(found.sum_to_size(theta.shape), alpha=1 / ctx.width)
        return d_pi, d_theta, None


def jump(pi: Tensor, theta: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """``z = pi · 1[pi > theta]``, and [] how many entries that are.

    dz/dpi = 1[pi > theta] and dz/dtheta := -(theta / width) · 1[abs(pi - theta) < width / 2]; the count gives
    theta -(1 / width) · 1[abs(pi - theta) < width / 2] and pi nothing.

    Args:
        pi: [n, d_sae] with ``theta [d_sae]``, or [nnz] with ``theta [nnz]``.
    """
    return _Jump.apply(pi, theta, width)  # type: ignore[no-any-return]
