"""The input scale: one power of two that brings activations to a common size."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import InvalidInput


def input_scale(x: Tensor) -> float:
    """The power of two nearest, in log2, to √d / median‖x − median x‖; multiplying by it is exact.

    Medians, of each coordinate and of the distances, so that a few tokens of another size decide nothing. Rows
    that are equal to the median of the coordinates do not count.

    Args:
        x: [n, d], any floating type; taken in float64.

    Raises: ``InvalidInput`` unless x is a finite matrix whose rows differ.
    """
    if x.ndim != 2 or len(x) == 0:
        raise InvalidInput(f"activations have shape {tuple(x.shape)}; expected [n, d] with n > 0: pass rows")
    wide = x.detach().double()
    distances = (wide - wide.median(0).values).norm(dim=1)
    if not bool(distances.isfinite().all()):
        raise InvalidInput("the activations hold NaN or infinity; expected finite values: drop bad rows")
    # Rows that are equal up to rounding carry no scale.
    apart = distances[distances > 1e-12 * float(wide.abs().max()) * math.sqrt(x.shape[1])]
    if len(apart) == 0:
        raise InvalidInput(f"all {len(x)} rows are equal, so there is no scale; pass rows that differ")
    return float(2.0 ** round(math.log2(math.sqrt(x.shape[1]) / float(apart.median()))))
