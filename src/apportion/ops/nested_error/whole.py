"""Nested prefixes of a code that is held as a matrix: a band is a slice of it, and all bands are one product."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bands import error_of_bands


class _NestedErrorWhole(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, W_dec: Tensor, b_dec: Tensor, ends: Sequence[int], into: Tensor | None
    ) -> Tensor:
        slices = [slice(first, last) for first, last in itertools.pairwise((0, *ends))]
        by_band = x.new_empty(len(slices), *x.shape)
        for band, decoded in zip(slices, by_band, strict=True):
            torch.mm(z[:, band], W_dec[band], out=decoded)
        error = error_of_bands(x, by_band.transpose(0, 1), b_dec)
        ctx.save_for_backward(z, W_dec, by_band)
        ctx.slices, ctx.into = slices, into
        return error

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, W_dec, by_band = ctx.saved_tensors
        needs_x, needs_z, needs_W_dec, needs_b_dec = ctx.needs_input_grad[:4]
        # Of what each band decodes to; small beside z.
        d_bands = -2 * grad * by_band
        d_z = torch.empty_like(z) if needs_z else None
        target = None
        if needs_W_dec:
            target = ctx.into if ctx.into is not None else torch.zeros_like(W_dec)
        for band, d_band in zip(ctx.slices, d_bands, strict=True):
            if d_z is not None:
                d_z[:, band] = d_band @ W_dec[band].T
            if target is not None:
                torch.addmm(target[band], z[:, band].T, d_band, out=target[band])
        d_x = -d_bands[0] if needs_x else None
        d_b_dec = d_bands[0].sum(0) if needs_b_dec else None
        return d_x, d_z, target if ctx.into is None else None, d_b_dec, None, None


def nested_error_whole(
    x: Tensor, z: Tensor, W_dec: Tensor, b_dec: Tensor, ends: Sequence[int], into: Tensor | None = None
) -> Tensor:
    """The same as ``nested_error`` of a code ``z [n, d_sae]``, every entry of which gets its gradient."""
    return _NestedErrorWhole.apply(x, z, W_dec, b_dec, ends, into)  # type: ignore[no-any-return]
