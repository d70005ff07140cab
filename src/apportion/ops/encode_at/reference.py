"""The encoder in dense form, the truth that ``fast`` is compared with."""

from __future__ import annotations

from torch import Tensor


def encode_at_reference(
    x: Tensor, weight: Tensor, b_enc: Tensor, b_dec: Tensor, rows: Tensor, features: Tensor
) -> Tensor:
    """Entries of ``(x - b_dec) @ weight.T + b_enc``: [nnz]; ``weight`` is feature-major, [d_sae, d_in]."""
    return ((x - b_dec) @ weight.T + b_enc)[rows, features]
