"""Directions of unit length: their gradients have no part along them, and no step leaves the sphere."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def project_gradient(W_dec: Tensor) -> None:
    """Take from ``W_dec.grad`` the part parallel to each direction, in place. Directions have unit length."""
    if W_dec.grad is None:
        return
    parallel = torch.einsum("fd,fd->f", W_dec.grad, W_dec)
    W_dec.grad.addcmul_(parallel[:, None], W_dec, value=-1)


@torch.no_grad()
def renormalise(W_dec: Tensor) -> None:
    """Scale every direction to unit length, in place."""
    length = torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    W_dec.div_(length.clamp(min=torch.finfo(W_dec.dtype).tiny))
