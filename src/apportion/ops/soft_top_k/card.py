"""The soft top-k on a card: a kernel finds the gap of every row's threshold, two others weigh entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .solve import Threshold, solve_between


def threshold_on_card(
    a: Tensor, k: Tensor, alpha: float, *, relu: bool = False, moment: bool = False
) -> Threshold:
    """The threshold of every row; the arguments are those of ``find_threshold``."""
    from ..kernels.soft import row_places

    lower, upper, above, p, q, p_moment, q_moment = row_places(a, k, alpha, relu=relu, moment=moment)
    found, y, z = solve_between(lower, upper, above, p, q, k, alpha)
    mean_t = None
    if moment:
        nearest = found.shift.abs()
        # An infinite distance is to an entry that is not there.
        from_above = (nearest - z).exp() * (p_moment + z.masked_fill(z.isinf(), 0) * p)
        from_below = (nearest - y).exp() * (q_moment - y.masked_fill(y.isinf(), 0) * q)
        mean_t = (from_above + from_below) / found.log_sum.exp()
    log_sum = found.log_sum.masked_fill(k == a.shape[1], torch.inf)
    return found._replace(log_sum=log_sum, mean_t=mean_t)


def weigh_on_card(
    values: Tensor, k: Tensor, alpha: Tensor | None, temperature: float, offsets: Tensor, found: Threshold
) -> Tensor:
    """The weights [nnz] of entries of every row, differentiable in ``values``, ``k [n]`` and ``alpha``.

    Args:
        values: [nnz], row by row; offsets: [n + 1] int64, where each row begins.
        alpha: ``temperature`` as a tensor if it is to get a gradient, which takes a ``found`` with ``mean_t``.
        found: the threshold of all entries of each row.
    """
    return _Weigh.apply(values, k, alpha, temperature, offsets, found)  # type: ignore[no-any-return]


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        k: Tensor,
        alpha: Tensor | None,
        temperature: float,
        offsets: Tensor,
        found: Threshold,
    ) -> Tensor:
        from ..kernels.soft import weigh

        ctx.save_for_backward(values, k, alpha, offsets)
        ctx.temperature, ctx.found = temperature, found
        return weigh(values, offsets, found.pivot, found.shift, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from ..kernels.soft import weigh_back

        values, k, alpha, offsets = ctx.saved_tensors
        pivot, shift, log_sum, mean_t = ctx.found
        mean_t = torch.zeros_like(pivot) if mean_t is None else mean_t
        d_values, d_k, d_alpha = weigh_back(values, grad, offsets, pivot, shift, log_sum, mean_t, ctx.temperature)
        total = d_alpha.sum().to(alpha).view(alpha.shape) if ctx.needs_input_grad[2] else None
        return d_values, d_k.to(k.dtype), total, None, None, None
