"""A ReLU layer read out to one number per row: two dense products, and no activations kept but their signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FEATURES_AT_ONCE = 1 << 10


class _ReluReadout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, readout: Tensor) -> Tensor:
        fires = torch.empty(len(weight), len(x), dtype=torch.bool, device=x.device)
        score = x.new_zeros(len(x))
        hidden = x.new_empty(min(_FEATURES_AT_ONCE, len(weight)), len(x))
        for part in _parts(len(weight)):
            out = torch.addmm(bias[part, None], weight[part], x.T, out=hidden[: part.stop - part.start])
            torch.gt(out, 0, out=fires[part])
            score.addmv_(out.clamp_(min=0).T, readout[part])
        ctx.save_for_backward(x, weight, bias, readout, fires)
        return score

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, readout, fires = ctx.saved_tensors
        d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
        d_readout = torch.empty_like(readout)
        gates = x.new_empty(min(_FEATURES_AT_ONCE, len(weight)), len(x))
        for part in _parts(len(weight)):
            gate = torch.mul(fires[part], grad, out=gates[: part.stop - part.start])
            torch.mm(gate, x, out=d_weight[part])
            d_bias[part] = gate.sum(1)
            # sum_b g_b ReLU(h_bf) = w_f . (sum_b g_b 1[h_bf > 0] x_b) + b_f sum_b g_b 1[h_bf > 0]
            d_readout[part] = torch.einsum("fd,fd->f", weight[part], d_weight[part]) + bias[part] * d_bias[part]
        d_weight *= readout[:, None]
        d_bias *= readout
        return None, d_weight, d_bias, d_readout


def relu_readout(x: Tensor, weight: Tensor, bias: Tensor, readout: Tensor) -> Tensor:
    """``ReLU(x weight^T + bias) . readout``, [n]; differentiable in the three parameters, blind to ``x``.

    Args:
        x: [n, d_in].
        weight: [width, d_in]; bias, readout: [width]. Computed in the type of ``x``.
    """
    own = (parameter.to(x.dtype) for parameter in (weight, bias, readout))
    return _ReluReadout.apply(x.detach(), *own)  # type: ignore[no-any-return]


def _parts(width: int) -> list[slice]:
    return [slice(low, min(low + _FEATURES_AT_ONCE, width)) for low in range(0, width, _FEATURES_AT_ONCE)]
