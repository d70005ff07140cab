"""The soft top-k as dense weights: passes over rows in cache, and a formula for every gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import kernels
from ..above import Pairs
from ..fresh import fresh_like
from .card import BY_KERNELS, threshold_on_card
from .checks import checked
from .entries import weighed
from .pairs import gradients_at
from .solve import Threshold, exp_, laplace_cdf
from .threshold import find_threshold, row_chunks

_FAR = 256.0  # beyond this |shift| float32 would blur which entries share the gradient


def soft_top_k(a: Tensor, k: Tensor | float, alpha: Tensor | float) -> Tensor:
    """Weights p in [0, 1] that sum to k per row: p_f = Phi((a_f - b) / alpha), Phi the Laplace CDF.

    For alpha -> 0 and integer k it is the hard top-k; entries that tie at the border share what is left. At
    k = F every weight is 1 and all gradients are zero; at k = 0 every weight is 0 and k keeps its right-hand
    derivative.
    LapSum, arXiv 2503.06242. Once differentiable in all three arguments.

    Args:
        a: [..., F], finite, any sign; bfloat16 and float16 are worked in float32.
        k: a number or a tensor that broadcasts to the leading shape, real, 0 <= k <= F.
        alpha: temperature > 0, a number or a tensor of one element.

    Returns:
        [..., F] in the dtype of ``a``.

    Raises:
        InvalidInput: ``k`` or ``alpha`` is out of range or NaN, or a shape does not fit.
    """
    temperature, k = checked(a, k, alpha)
    if a.numel() == 0:
        return a.clone()
    wide = a if a.dtype in (torch.float32, torch.float64) else a.float()
    rows = wide.reshape(-1, a.shape[-1]).contiguous()
    alpha_graph = alpha if isinstance(alpha, Tensor) else None
    weigh = _weigh_on_card if kernels.on_card(a) else _SoftTopK.apply
    weights: Tensor = weigh(rows, k.reshape(-1), alpha_graph, temperature)
    return weights.view(a.shape).to(a.dtype)


def _weigh_on_card(a: Tensor, k: Tensor, alpha: Tensor | None, temperature: float) -> Tensor:
    moment = alpha is not None and alpha.requires_grad
    found = threshold_on_card(a.detach(), k.detach().double(), temperature, moment=moment)
    offsets = torch.arange(len(a) + 1, device=a.device) * a.shape[1]
    return weighed(a.view(-1), k, alpha, temperature, offsets, found, BY_KERNELS)


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, k: Tensor, alpha: Tensor | None, temperature: float) -> Tensor:
        found, near = find_threshold(a, k.double(), temperature, moment=ctx.needs_input_grad[2])
        weights = fresh_like(a)
        if not near.complete:
            for part in row_chunks(a):  # as if every entry lay below b
                t = _distances(a[part], found.rows(part), temperature, weights[part])
                exp_(t.sub_(math.log(2.0)))
        flat = near.pairs.rows * a.shape[1] + near.pairs.features
        weights.view(-1).index_copy_(0, flat, laplace_cdf(near.t).to(a.dtype))
        ctx.save_for_backward(a, k, alpha, *near.pairs, near.t, *found)
        ctx.complete, ctx.temperature = near.complete, temperature
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, k, alpha, rows, features, t, *statistics = ctx.saved_tensors
        found = Threshold(*statistics)
        d_a = fresh_like(a)
        if ctx.complete:
            near = Pairs(rows, features)
            d_values, d_k, d_alpha = gradients_at(found, rows, t, near.of(grad), ctx.temperature)
            d_a.view(-1).index_copy_(0, rows * a.shape[1] + features, d_values.to(a.dtype))
        else:
            parts = [
                _gradients(a[part], grad[part], found.rows(part), ctx.temperature, d_a[part])
                for part in row_chunks(a)
            ]
            d_k, d_alpha = (torch.cat(column) for column in zip(*parts, strict=True))
        total = d_alpha.sum().to(alpha).view(alpha.shape) if alpha is not None else None
        return d_a, d_k.to(k.dtype), total, None


def _distances(a: Tensor, found: Threshold, alpha: float, out: Tensor) -> Tensor:
    """t [n, F] of ``a [n, F]``, into ``out``."""
    torch.sub(a, found.pivot[:, None].to(a.dtype), out=out)
    return torch.add(-found.shift[:, None].to(a.dtype), out, alpha=1 / alpha, out=out)


def _gradients(a: Tensor, grad: Tensor, found: Threshold, alpha: float, d_a: Tensor) -> tuple[Tensor, Tensor]:
    """Fills ``d_a [n, F]`` and returns what each row gives k and alpha, [n] each."""
    if a.dtype != torch.float64 and found.shift.abs().max() > _FAR:
        work = torch.empty_like(a, dtype=torch.float64)
        result = _gradients(a.double(), grad.double(), found, alpha, work)
        d_a.copy_(work)
        return result
    density = found.density()
    t = _distances(a, found, alpha, d_a)
    share = torch.abs(t)  # what becomes Phi'(t) / sum of Phi'
    exp_(torch.sub((found.shift.abs() - found.log_sum)[:, None].to(a.dtype), share, out=share))
    d_k = torch.linalg.vecdot(share, grad)
    d_alpha = torch.zeros_like(d_k)
    if found.mean_t is not None:
        d_alpha = -density / alpha * (torch.linalg.vecdot(t.mul_(share), grad) - found.mean_t * d_k)
    torch.sub(grad, d_k[:, None], out=d_a).mul_(share).mul_((density / alpha)[:, None].to(a.dtype))
    return d_k, d_alpha
