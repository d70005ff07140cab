"""The decoder from a code that is held as a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _DecodeWhole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, W_dec: Tensor, into: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, W_dec)
        ctx.into = into
        return z @ W_dec

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, W_dec = ctx.saved_tensors
        d_z = grad @ W_dec.T if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return d_z, None, None
        if ctx.into is None:
            return d_z, z.T @ grad, None
        torch.addmm(ctx.into, z.T, grad, out=ctx.into)
        return d_z, None, None


def decode_whole(z: Tensor, W_dec: Tensor, into: Tensor | None = None) -> Tensor:
    """``z [n, d_sae] @ W_dec [d_sae, d_in]``; a gradient for ``W_dec`` is added to ``into``, if there is one."""
    return _DecodeWhole.apply(z, W_dec, into)  # type: ignore[no-any-return]
