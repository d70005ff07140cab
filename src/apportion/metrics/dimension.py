"""Local intrinsic dimension: in how many directions there are activations around one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInput
from .base import wide

_BLOCK = 256


def local_dimension(x: Tensor, points: Tensor, neighbours: int) -> Tensor:
    """The maximum-likelihood estimate of Levina and Bickel 2004, on the CPU.

    From the distances T_1 <= ... <= T_m of a point to its m nearest neighbours it is the inverse of the mean of
    ln(T_m / T_j) over j < m. Activations equal to the point, such as those of the first token of every context,
    are no neighbours of it.

    Args:
        x: [n, d_in] activations, finite.
        points: [p] int64, the rows of ``x`` to estimate at.
        neighbours: m.

    Returns:
        [p] float64, NaN where fewer than m others are apart from the point, or all m equally far.

    Raises:
        InvalidInput: ``neighbours`` is below 3 or not below n.
    """
    if not 3 <= neighbours < len(x):
        raise InvalidInput(
            f"{neighbours} neighbours were asked for among {len(x)} activations; ask for 3 or more, and fewer "
            "than there are"
        )
    x = wide(x.cpu())
    x = x - x.mean(0)  # distances from products of rows lose what rows have in common
    found = [_of_block(x, part, neighbours) for part in points.cpu().split(_BLOCK)]
    return torch.cat(found) if found else x.new_zeros(0)


def _of_block(x: Tensor, points: Tensor, neighbours: int) -> Tensor:
    apart = torch.cdist(x[points], x)
    # Rounding leaves equal ones a little apart: by the root of what it loses of their squares.
    length = torch.linalg.vector_norm(x[points], dim=1, keepdim=True)
    apart.masked_fill_(apart <= 1e-6 * length, torch.inf)
    nearest = apart.topk(neighbours, dim=1, largest=False).values
    mean = (nearest[:, -1:] / nearest[:, :-1]).log().mean(1)
    return torch.where(mean.isfinite() & (mean > 0), 1 / mean, torch.nan)
