"""Nested prefixes, each a band of features more than the one before: bands are decoded once and added up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...code import Code
from ..decode import decode


class _ErrorsOfSums(torch.autograd.Function):
    """Squared errors of the running sums of ``bands [n, P, d_in]``, which it takes over as its own memory."""

    @staticmethod
    def forward(ctx: Any, bands: Tensor, x: Tensor, b_dec: Tensor) -> Tensor:
        left = bands.detach()  # decoding needs its result for no gradient, and a second one is dear
        n_bands = left.shape[1]
        torch.sub(x - b_dec, left[:, 0], out=left[:, 0])
        for j in range(1, n_bands):
            torch.sub(left[:, j - 1], left[:, j], out=left[:, j])
        # By rows first: one float32 sum over everything would lose four digits.
        error: Tensor = torch.linalg.vector_norm(left, dim=2).square().sum()
        # A band is part of every prefix from its own on, and gets the residuals of all of these.
        for j in reversed(range(n_bands - 1)):
            left[:, j] += left[:, j + 1]
        ctx.save_for_backward(left)
        return error

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (later,) = ctx.saved_tensors
        d_bands = later * (-2 * grad)
        needs_x, needs_b_dec = ctx.needs_input_grad[1:]
        return (
            d_bands,
            -d_bands[:, 0] if needs_x else None,
            d_bands[:, 0].sum(0) if needs_b_dec else None,
        )


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
    bands = decode(code.in_bands(ends), W_dec, None, into)
    return _ErrorsOfSums.apply(bands.view(code.n, len(ends), x.shape[1]), x, b_dec)  # type: ignore[no-any-return]
