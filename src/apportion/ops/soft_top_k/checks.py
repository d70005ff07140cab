"""What the soft top-k refuses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import InvalidInput


def checked(a: Tensor, k: Tensor | float, alpha: Tensor | float) -> tuple[float, Tensor]:
    """``alpha`` as a number and ``k`` as a tensor of the leading shape of ``a``, or InvalidInput."""
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise InvalidInput(f"alpha has shape {tuple(alpha.shape)}; give one temperature for all rows")
    temperature = as_number(alpha)
    if not (0 < temperature < math.inf):
        raise InvalidInput(f"alpha = {temperature}; give a finite temperature above 0")
    if a.ndim == 0 or not a.is_floating_point():
        raise InvalidInput(f"a has shape {tuple(a.shape)} and type {a.dtype}; give floating-point rows [..., F]")
    leading, width = a.shape[:-1], a.shape[-1]
    if not isinstance(k, Tensor):
        k = torch.tensor(float(k), dtype=torch.float64, device=a.device)
    try:
        k = k.expand(leading)
    except RuntimeError:
        raise InvalidInput(
            f"k has shape {tuple(k.shape)}; give a number or one k per row, {tuple(leading)}"
        ) from None
    wrong = ~((k >= 0) & (k <= width))
    if wrong.any():
        raise InvalidInput(f"k = {float(k[wrong][0])}; give a k from 0 to the number of entries, {width}")
    return temperature, k


def as_number(alpha: Tensor | float) -> float:
    """``alpha`` without its graph."""
    return float(alpha.detach()) if isinstance(alpha, Tensor) else float(alpha)
