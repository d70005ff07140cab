"""What both ways share: from the decoded bands of a dictionary to the errors of its prefixes."""

from __future__ import annotations

import torch
from torch import Tensor


def error_of_bands(x: Tensor, bands: Tensor, b_dec: Tensor) -> Tensor:
    """[]: |x - x_hat|^2 summed over tokens and prefixes.

    Args:
        x: [n, d_in].
        bands: [n, P, d_in], what each band alone decodes to; overwritten with the sum of the residuals of all
            prefixes that the band is part of, of which its gradients are made.
        b_dec: [d_in].
    """
    left, n_bands = bands, bands.shape[1]
    torch.sub(x, left[:, 0], out=left[:, 0]).sub_(b_dec)
    for j in range(1, n_bands):
        torch.sub(left[:, j - 1], left[:, j], out=left[:, j])
    # By rows first: one float32 sum over everything would lose four digits.
    error: Tensor = torch.linalg.vector_norm(left, dim=2).square().sum()
    # A band is part of every prefix from its own on, and gets the residuals of all of these.
    for j in reversed(range(n_bands - 1)):
        left[:, j] += left[:, j + 1]
    return error
