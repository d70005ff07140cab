"""The encoder at chosen pairs: values come from the dense product, gradients touch only the pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spmm import add_spmm, group_by, pair_dots


class _EncodeAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        centred: Tensor,
        values: Tensor,
        rows: Tensor,
        features: Tensor,
        into: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight, centred, rows, features)
        ctx.into = into
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, centred, rows, features = ctx.saved_tensors
        needs_x, needs_weight, needs_b_enc, needs_b_dec = ctx.needs_input_grad[:4]
        d_sae = weight.shape[0]
        d_x = d_weight = d_b_enc = d_b_dec = None
        if needs_b_enc or needs_b_dec:
            d_b_enc = grad.new_zeros(d_sae).index_add_(0, features, grad)
        if needs_b_dec:
            d_b_dec = -(d_b_enc @ weight)
        if needs_weight:
            target = ctx.into if ctx.into is not None else torch.zeros_like(weight)
            by_feature = group_by(features, d_sae)
            entries = by_feature.order
            add_spmm(target, by_feature.offsets, rows[entries], grad[entries], centred)
            d_weight = None if ctx.into is not None else target
        if needs_x:
            d_x = torch.zeros_like(centred)
            by_row = group_by(rows, len(centred))
            entries = by_row.order
            add_spmm(d_x, by_row.offsets, features[entries], grad[entries], weight)
        return d_x, d_weight, d_b_enc if needs_b_enc else None, d_b_dec, *([None] * 5)


def encode_at(
    x: Tensor,
    weight: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    rows: Tensor,
    features: Tensor,
    *,
    centred: Tensor | None = None,
    values: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Pre-activations ``(x[b] - b_dec) . weight[f] + b_enc[f]`` at the pairs (b, f), differentiable in all four.

    Args:
        x: [n, d_in].
        weight: [d_sae, d_in], contiguous: one feature's weights lie together.
        b_enc: [d_sae]; b_dec: [d_in].
        rows, features: [nnz] int64, in any order; repeats are allowed.
        centred: ``x - b_dec`` if the caller has it.
        values: [nnz], the results if the caller has them from the dense product; else they are computed here.
        into: a gradient buffer shaped like ``weight``; the backward pass adds to it instead of returning a
            gradient for ``weight``.
    """
    with torch.no_grad():
        if centred is None:
            centred = x - b_dec
        if values is None:
            values = pair_dots(centred, rows, weight, features) + b_enc[features]
    return _EncodeAt.apply(x, weight, b_enc, b_dec, centred.detach(), values.detach(), rows, features, into)  # type: ignore[no-any-return]
