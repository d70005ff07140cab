"""The encoder at all pairs: dense gradients, for rules that are not sparse yet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _EncodeWhole(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        centred: Tensor,
        pre: Tensor,
        into: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight, centred)
        ctx.into = into
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, centred = ctx.saved_tensors
        needs_x, needs_weight, needs_b_enc, needs_b_dec = ctx.needs_input_grad[:4]
        d_x = d_weight = d_b_enc = d_b_dec = None
        if needs_b_enc or needs_b_dec:
            d_b_enc = grad.sum(0)
        if needs_b_dec:
            d_b_dec = -(d_b_enc @ weight)
        if needs_weight and ctx.into is not None:
            torch.addmm(ctx.into, grad.T, centred, out=ctx.into)
        elif needs_weight:
            d_weight = grad.T @ centred
        if needs_x:
            d_x = grad @ weight
        return d_x, d_weight, d_b_enc if needs_b_enc else None, d_b_dec, None, None, None


def encode_whole(
    x: Tensor,
    weight: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    *,
    centred: Tensor,
    pre: Tensor,
    into: Tensor | None = None,
) -> Tensor:
    """Known pre-activations ``pre [n, d_sae]``, made differentiable in the other four. See ``encode_at``."""
    return _EncodeWhole.apply(x, weight, b_enc, b_dec, centred.detach(), pre.detach(), into)  # type: ignore[no-any-return]
