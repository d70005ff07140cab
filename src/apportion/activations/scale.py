"""The input scale: one power of two that brings activations to a common size."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import InvalidInput


def input_scale(x: Tensor) -> float:
    """The power of two nearest, in log2, to √d / mean‖x − mean x‖; multiplying by it is exact.

    Args:
        x: [n, d], any floating type; the mean is taken in float64.

    Raises: ``InvalidInput`` unless x is a finite matrix whose rows differ.
    """
    if x.ndim != 2 or len(x) == 0:
        raise InvalidInput(f"activations have shape {tuple(x.shape)}; expected [n, d] with n > 0: pass rows")
    wide = x.detach().double()
    spread = float((wide - wide.mean(0)).norm(dim=1).mean())
    if not math.isfinite(spread):
        raise InvalidInput(f"the spread of the activations is {spread}; expected finite values: drop bad rows")
    # Rows that are equal up to the rounding of their own mean carry no scale.
    if spread <= 1e-12 * float(wide.abs().max()) * math.sqrt(x.shape[1]):
        raise InvalidInput(f"all {len(x)} rows are equal, so there is no scale; pass rows that differ")
    return float(2.0 ** round(math.log2(math.sqrt(x.shape[1]) / spread)))
