"""The soft top-k's weights of some entries of every row, as one differentiable operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .solve import Threshold


class Way(NamedTuple):
    """Who computes it: torch or kernels.

    ``where`` says, in the terms of the way, to which row each of the nnz entries belongs.

    Attributes:
        weigh: (values [nnz], where, threshold, alpha) to the weights [nnz] and what ``back`` is to be given.
        back: (that, where, gradient of the weights [nnz], threshold, alpha) to what the values [nnz], k [n] and
            alpha [n] get; without ``mean_t`` in the threshold, what alpha gets means nothing.
    """

    weigh: Callable[[Tensor, Tensor, Threshold, float], tuple[Tensor, Tensor]]
    back: Callable[[Tensor, Tensor, Tensor, Threshold, float], tuple[Tensor, Tensor, Tensor]]


def weighed(
    values: Tensor, k: Tensor, alpha: Tensor | None, temperature: float, where: Tensor, found: Threshold, way: Way
) -> Tensor:
    """The weights [nnz], differentiable in ``values``, ``k [n]`` and ``alpha``.

    Args:
        alpha: ``temperature`` as a tensor if it is to get a gradient, which takes a ``found`` with ``mean_t``.
        found: the threshold of all entries of each row.
    """
    return _Weighed.apply(values, k, alpha, temperature, where, found, way)  # type: ignore[no-any-return]


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        k: Tensor,
        alpha: Tensor | None,
        temperature: float,
        where: Tensor,
        found: Threshold,
        way: Way,
    ) -> Tensor:
        weights, kept = way.weigh(values, where, found, temperature)
        ctx.save_for_backward(k, alpha, where, kept)
        ctx.temperature, ctx.found, ctx.way = temperature, found, way
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        k, alpha, where, kept = ctx.saved_tensors
        d_values, d_k, d_alpha = ctx.way.back(kept, where, grad, ctx.found, ctx.temperature)
        total = d_alpha.sum().to(alpha).view(alpha.shape) if ctx.needs_input_grad[2] else None
        return d_values.to(grad.dtype), d_k.to(k.dtype), total, None, None, None, None
