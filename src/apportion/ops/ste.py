"""Steps whose gradient is a window around them: how a threshold is learned (Rajamanoharan et al. 2024, JumpReLU).

Both sums run over the whole window, entries below the threshold too: these are not in the code and carry half of
the threshold's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pi: Tensor, theta: Tensor, width: float) -> Tensor:
        above = pi > theta
        ctx.save_for_backward(above, pi, theta)
        ctx.width = width
        return pi * above

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        above, pi, theta = ctx.saved_tensors
        return grad * above, -grad * theta * _window(pi, theta, ctx.width), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pi: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pi, theta)
        ctx.width = width
        return (pi > theta).to(pi.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        pi, theta = ctx.saved_tensors
        return None, -grad * _window(pi, theta, ctx.width), None


def _window(pi: Tensor, theta: Tensor, width: float) -> Tensor:
    """1 / width where ``pi`` is within half of it of ``theta``, else 0."""
    return ((pi - theta).abs() < width / 2) / width


def jump(pi: Tensor, theta: Tensor, width: float) -> Tensor:
    """``pi · 1[pi > theta]``, all of one shape.

    d/dpi = 1[pi > theta] and d/dtheta := -(theta / width) · 1[abs(pi - theta) < width / 2] (arXiv 2407.14435).
    """
    return _Jump.apply(pi, theta, width)  # type: ignore[no-any-return]


def step(pi: Tensor, theta: Tensor, width: float) -> Tensor:
    """``1[pi > theta]``, all of one shape.

    d/dtheta := -(1 / width) · 1[abs(pi - theta) < width / 2], nothing to ``pi`` (arXiv 2407.14435).
    """
    return _Step.apply(pi, theta, width)  # type: ignore[no-any-return]
