"""The decoder in dense form, the truth that ``fast`` is compared with."""

from __future__ import annotations

from torch import Tensor


def decode_reference(z: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """``z @ W_dec + b_dec``: [n, d_sae] x [d_sae, d_in] -> [n, d_in]."""
    return z @ W_dec + b_dec
