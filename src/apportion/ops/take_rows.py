"""Some rows of a parameter: what their gradients add to the whole's, without a gradient as large as the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, into: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.into = weight.shape, into
        return weight.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (rows,) = ctx.saved_tensors
        target = ctx.into if ctx.into is not None else grad.new_zeros(ctx.shape)
        target.index_add_(0, rows, grad)
        return (None if ctx.into is not None else target), None, None


def take_rows(weight: Tensor, rows: Tensor, into: Tensor | None = None) -> Tensor:
    """``weight[rows]``: [g, ...] of ``weight [r, ...]``, differentiable in ``weight``.

    Args:
        rows: [g] int64.
        into: a gradient buffer shaped like ``weight``; the backward pass adds to it instead of returning a
            gradient for ``weight``.
    """
    return _TakeRows.apply(weight, rows, into)  # type: ignore[no-any-return]
