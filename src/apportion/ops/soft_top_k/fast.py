"""The soft top-k as dense weights: passes over rows in cache, and a formula for every gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import InvalidInput
from .threshold import Threshold, find_threshold, row_chunks

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
    rows = wide.reshape(-1, a.shape[-1])
    alpha_graph = alpha if isinstance(alpha, Tensor) else None
    weights: Tensor = _SoftTopK.apply(rows, k.reshape(-1), alpha_graph, temperature)
    return weights.view(a.shape).to(a.dtype)


def checked(a: Tensor, k: Tensor | float, alpha: Tensor | float) -> tuple[float, Tensor]:
    """``alpha`` as a number, and ``k`` as a tensor of the leading shape of ``a``."""
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise InvalidInput(f"alpha has shape {tuple(alpha.shape)}; give one temperature for all rows")
    temperature = float(alpha.detach()) if isinstance(alpha, Tensor) else float(alpha)
    if not (0 < temperature < math.inf):
        raise InvalidInput(f"alpha = {temperature}; give a finite temperature above 0")
    if a.ndim == 0 or not a.is_floating_point():
        raise InvalidInput(f"a has shape {tuple(a.shape)} and type {a.dtype}; give floating-point rows [..., F]")
    leading, width = a.shape[:-1], a.shape[-1]
    if not isinstance(k, Tensor):
        k = torch.tensor(float(k), dtype=torch.float64, device=a.device)
    try:
        k = k.expand(leading)
    except RuntimeError:
        raise InvalidInput(
            f"k has shape {tuple(k.shape)}; give a number or one k per row, {tuple(leading)}"
        ) from None
    wrong = ~((k >= 0) & (k <= width))
    if wrong.any():
        raise InvalidInput(f"k = {float(k[wrong][0])}; give a k from 0 to the number of entries, {width}")
    return temperature, k


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, k: Tensor, alpha: Tensor | None, temperature: float) -> Tensor:
        found, near = find_threshold(a, k.double(), temperature)
        weights = torch.empty_like(a, memory_format=torch.contiguous_format)
        for part in row_chunks(a):  # as if every entry lay below b
            t = _distances(a[part], found.rows(part), temperature, weights[part])
            t.sub_(math.log(2.0)).exp_()
        weights[near.pairs.rows, near.pairs.features] = (1 - (-near.t).exp() / 2).to(a.dtype)
        ctx.save_for_backward(a, k, alpha, *found[:3])
        ctx.temperature = temperature
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, k, alpha, pivot, shift, log_sum = ctx.saved_tensors
        found = Threshold(pivot, shift, log_sum, mean_t=None)
        d_a = torch.empty_like(a, memory_format=torch.contiguous_format)
        rows = [
            _gradients(a[part], grad[part], found.rows(part), ctx.temperature, ctx.needs_input_grad[2], d_a[part])
            for part in row_chunks(a)
        ]
        d_k, d_alpha = (torch.cat(column) for column in zip(*rows, strict=True))
        total = d_alpha.sum().to(alpha).view(alpha.shape) if alpha is not None else None
        return d_a, d_k.to(k.dtype), total, None


def _distances(a: Tensor, found: Threshold, alpha: float, out: Tensor) -> Tensor:
    """t [n, F] of ``a [n, F]``, into ``out``."""
    torch.sub(a, found.pivot[:, None].to(a.dtype), out=out)
    return torch.add(-found.shift[:, None].to(a.dtype), out, alpha=1 / alpha, out=out)


def _gradients(
    a: Tensor, grad: Tensor, found: Threshold, alpha: float, needs_alpha: bool, d_a: Tensor
) -> tuple[Tensor, Tensor]:
    """Fills ``d_a [n, F]`` and returns what each row gives k and alpha, [n] each."""
    if a.dtype != torch.float64 and found.shift.abs().max() > _FAR:
        work = torch.empty_like(a, dtype=torch.float64)
        result = _gradients(a.double(), grad.double(), found, alpha, needs_alpha, work)
        d_a.copy_(work)
        return result
    density = found.density()
    t = _distances(a, found, alpha, d_a)
    share = torch.abs(t)  # what becomes Phi'(t) / sum of Phi'
    torch.sub((found.shift.abs() - found.log_sum)[:, None].to(a.dtype), share, out=share).exp_()
    d_k = torch.linalg.vecdot(share, grad)
    d_alpha = torch.zeros_like(d_k)
    if needs_alpha:
        t.mul_(share)
        d_alpha = -density / alpha * (torch.linalg.vecdot(t, grad) - t.sum(1) * d_k)
    torch.sub(grad, d_k[:, None], out=d_a).mul_(share).mul_((density / alpha)[:, None].to(a.dtype))
    return d_k, d_alpha
