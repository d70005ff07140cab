"""Nested prefixes, each a band of features more than the one before: bands are decoded once and added up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...code import Code
from ..spmm import add_spmm, group_by, spmm
from .bands import error_of_bands
from .whole import nested_error_whole


class _NestedError(torch.autograd.Function):
    """One buffer [n, P, d_in] holds the bands, then the residuals, then what backward needs of them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, split: Code, into: Tensor | None
    ) -> Tensor:
        n_bands = split.shape[-1]
        with torch.enable_grad():  # for its own backward pass, which is eight times faster than gathering
            weights = values.detach().requires_grad_()
            bands = spmm(split.offsets, split.indices, weights, W_dec.detach())
        left = bands.detach().view(len(x), n_bands, x.shape[1])
        error = error_of_bands(x, left, b_dec)
        ctx.save_for_backward(values, left)
        ctx.weights, ctx.bands, ctx.split, ctx.into, ctx.shape = weights, bands, split, into, W_dec.shape
        return error

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, left = ctx.saved_tensors
        by_band = left.view(-1, ctx.shape[1])
        needs_x, needs_values, needs_W_dec, needs_b_dec = ctx.needs_input_grad[:4]
        factor = -2 * grad  # on vectors, never on the buffer: a second one of that size is dear
        d_x = d_values = d_W_dec = d_b_dec = None
        if needs_x:
            d_x = -factor * left[:, 0]
        if needs_b_dec:
            d_b_dec = factor * left[:, 0].sum(0)
        if needs_values:
            (d_values,) = torch.autograd.grad(ctx.bands, ctx.weights, by_band, retain_graph=True)
            d_values = factor * d_values
        if needs_W_dec:
            target = ctx.into if ctx.into is not None else by_band.new_zeros(ctx.shape)
            by_feature = group_by(ctx.split.indices, ctx.shape[0])
            entries = by_feature.order
            add_spmm(target, by_feature.offsets, ctx.split.rows[entries], (factor * values)[entries], by_band)
            d_W_dec = None if ctx.into is not None else target
        return d_x, d_values, d_W_dec, d_b_dec, None, None


def nested_error(
    x: Tensor, code: Code, W_dec: Tensor, b_dec: Tensor, ends: Tensor, into: Tensor | None = None
) -> Tensor:
    """[]: |x - x_hat|^2 summed over tokens and over prefixes of the dictionary, each with ``b_dec``.

    Gradients reach ``x``, ``code.values``, ``W_dec`` and ``b_dec``; entries of value zero get theirs.

    Args:
        x: [n, d_in].
        code: n tokens.
        W_dec: [d_sae, d_in], contiguous.
        b_dec: [d_in].
        ends: [P] int64, how many features each prefix has; ascending, the last d_sae.
        into: a gradient buffer shaped like ``W_dec``; the backward pass adds to it instead of returning a
            gradient for ``W_dec``.
    """
    if code.matrix is not None:
        return nested_error_whole(x, code.matrix, W_dec, b_dec, ends.tolist(), into)
    split = code.detach().in_bands(ends)
    return _NestedError.apply(x, code.values, W_dec, b_dec, split, into)  # type: ignore[no-any-return]
