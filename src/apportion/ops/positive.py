"""How many entries of a large matrix are above zero, by row and by column.

Torch sums a mask one entry at a time. Ones in float32, a few rows at a time, take a quarter of that, and their
sums are exact up to 2^24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .row_blocks import row_blocks


def positive_in_rows(z: Tensor) -> Tensor:
    """[n] int64, of ``z [n, d_sae]``."""
    out = z.new_empty(len(z), dtype=torch.int64)
    for at in row_blocks(z):
        out[at] = (z[at] > 0).float().sum(1)
    return out


def positive_in_columns(z: Tensor) -> Tensor:
    """[d_sae] int64, of ``z [n, d_sae]``."""
    out = z.new_zeros(z.shape[1], dtype=torch.int64)
    for at in row_blocks(z):
        out += (z[at] > 0).float().sum(0).long()
    return out
