"""The soft top-k on a card: a kernel finds the gap of every row's threshold, two others weigh entries."""

from __future__ import annotations

import torch
from torch import Tensor

from .entries import Way
from .solve import Threshold, solve_between


def threshold_on_card(
    a: Tensor, k: Tensor, alpha: float, *, relu: bool = False, moment: bool = False
) -> Threshold:
    """The threshold of every row; the arguments are those of ``find_threshold``."""
    from ..kernels.soft import row_places

    lower, upper, above, p, q, p_moment, q_moment = row_places(a, k, alpha, relu=relu, moment=moment)
    found, y, z = solve_between(lower, upper, above, p, q, k, alpha)
    mean_t = None
    if moment:
        nearest = found.shift.abs()
        # An infinite distance is to an entry that is not there.
        from_above = (nearest - z).exp() * (p_moment + z.masked_fill(z.isinf(), 0) * p)
        from_below = (nearest - y).exp() * (q_moment - y.masked_fill(y.isinf(), 0) * q)
        mean_t = (from_above + from_below) / found.log_sum.exp()
    log_sum = found.log_sum.masked_fill(k == a.shape[1], torch.inf)
    return found._replace(log_sum=log_sum, mean_t=mean_t)


def _weigh(values: Tensor, offsets: Tensor, found: Threshold, alpha: float) -> tuple[Tensor, Tensor]:
    from ..kernels.soft import weigh

    return weigh(values, offsets, found.pivot, found.shift, alpha), values


def _weigh_back(
    values: Tensor, offsets: Tensor, grad: Tensor, found: Threshold, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    from ..kernels.soft import weigh_back

    pivot, shift, log_sum, mean_t = found
    mean_t = torch.zeros_like(pivot) if mean_t is None else mean_t
    return weigh_back(values, grad, offsets, pivot, shift, log_sum, mean_t, alpha)


BY_KERNELS = Way(_weigh, _weigh_back)
"""``where`` are the offsets [n + 1] int64 at which each row's entries begin."""
