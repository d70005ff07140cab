"""The errors of nested prefixes in dense form, the truth that ``fast`` is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def nested_error_reference(x: Tensor, z: Tensor, W_dec: Tensor, b_dec: Tensor, ends: Sequence[int]) -> Tensor:
    """[]: |x - (z[:, :m] @ W_dec[:m] + b_dec)|^2 summed over prefixes m and rows of ``z [n, d_sae]``."""
    errors = [(x - (z[:, :m] @ W_dec[:m] + b_dec)).square().sum() for m in ends]
    return torch.stack(errors).sum()
