"""Products with ReLU(pre) that never hold it as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 20  # entries of a chunk that stays in the cache between being rectified and being read


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, weight: Tensor) -> Tensor:
        ctx.pre = pre  # not saved by autograd: it is detached, and a buffer that outlives the step
        parts = [part @ weight for part in _rectified(pre)]
        return torch.cat(parts) if parts else weight.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        total, start = grad.new_zeros(ctx.pre.shape[1]), 0
        for part in _rectified(ctx.pre):
            total.addmv_(part.T, grad[start : start + len(part)])
            start += len(part)
        return None, total


def weigh(pre: Tensor, weight: Tensor) -> Tensor:
    """``ReLU(pre [n, d_sae]) @ weight [d_sae]``, [n]; differentiable in ``weight``, blind to ``pre``."""
    return _Weigh.apply(pre.detach(), weight.to(pre.dtype))  # type: ignore[no-any-return]


def rectified_means(pre: Tensor) -> Tensor:
    """Column means [d_sae] of ``ReLU(pre [n, d_sae])``; zeros without rows."""
    total = pre.new_zeros(pre.shape[1])
    for part in _rectified(pre):
        total += part.sum(0)
    return total / max(len(pre), 1)


def _rectified(pre: Tensor) -> Iterator[Tensor]:
    """Consecutive rows of ReLU(pre), in one buffer that the next ones overwrite."""
    step = max(_CHUNK // max(pre.shape[1], 1), 1)
    buffer = pre.new_empty(min(step, len(pre)), pre.shape[1])
    for start in range(0, len(pre), step):
        part = pre[start : start + step]
        yield torch.clamp(part, min=0, out=buffer[: len(part)])
