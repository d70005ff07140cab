"""The geometric median: the point with the smallest total distance to all rows."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def geometric_median(x: Tensor, tolerance: float = 1e-6, max_steps: int = 200) -> Tensor:
    """[d] for ``x [n, d]``, by Weiszfeld's iteration from the mean, in float64.

    It stops when a step is shorter than ``tolerance`` times the mean distance.
    """
    points = x.double()
    centre = points.mean(0)
    for _ in range(max_steps):
        distance = torch.linalg.vector_norm(points - centre, dim=1)
        weight = 1 / distance.clamp(min=torch.finfo(torch.float64).tiny ** 0.5)
        moved = (weight @ points) / weight.sum()
        shift = torch.linalg.vector_norm(moved - centre)
        centre = moved
        if shift <= tolerance * distance.mean():
            break
    return centre.to(x.dtype)
