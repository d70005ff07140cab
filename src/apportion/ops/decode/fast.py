"""The decoder from a sparse code: a weighted sum of directions per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...code import Code
from ..spmm import add_spmm, group_by, spmm
from .whole import decode_whole


class _DirectionGradient(torch.autograd.Function):
    """Identity on ``out``; its backward gives the directions their gradient, one sparse product."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, W_dec: Tensor, values: Tensor, code: Code, into: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, code.indices, code.rows)
        ctx.shape, ctx.into = W_dec.shape, into
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None
        values, features, rows = ctx.saved_tensors
        target = ctx.into if ctx.into is not None else grad.new_zeros(ctx.shape)
        by_feature = group_by(features, ctx.shape[0])
        entries = by_feature.order
        add_spmm(target, by_feature.offsets, rows[entries], values[entries], grad.contiguous())
        return grad, None if ctx.into is not None else target, None, None, None


def decode(code: Code, W_dec: Tensor, b_dec: Tensor | None, into: Tensor | None = None) -> Tensor:
    """Sum of the chosen directions, each times its value, plus ``b_dec``.

    Gradients reach ``code.values``, ``W_dec`` and ``b_dec`` through the code's entries only, entries of value
    zero included.

    Args:
        code: n tokens.
        W_dec: [d_sae, d_in], contiguous.
        b_dec: [d_in], or None for no bias.
        into: a gradient buffer shaped like ``W_dec``; the backward pass adds to it instead of returning a
            gradient for ``W_dec``.

    Returns:
        [n, d_in].
    """
    if code.matrix is not None:
        out = decode_whole(code.matrix, W_dec, into)
        return out if b_dec is None else out + b_dec
    out = spmm(code.offsets, code.indices, code.values, W_dec.detach())
    if W_dec.requires_grad and torch.is_grad_enabled():
        out = _DirectionGradient.apply(out, W_dec, code.values.detach(), code, into)
    return out if b_dec is None else out + b_dec
