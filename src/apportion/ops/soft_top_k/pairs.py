"""The soft top-k at the pairs that matter: for training, where a code of all entries would not be sparse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidInput
from .. import kernels
from ..above import Pairs
from ..spmm import offsets_of
from .card import BY_KERNELS
from .checks import as_number, checked
from .entries import Way, weighed
from .solve import Threshold, exp_, laplace_cdf
from .threshold import find_threshold


class SoftPairs(NamedTuple):
    """The (token, feature) pairs whose weight is worth keeping, and what their gradients need of all others."""

    pairs: Pairs
    threshold: Threshold


def soft_pairs(pre: Tensor, k: Tensor, alpha: Tensor | float, floor: float) -> SoftPairs:
    """The pairs with affinity ReLU(pre) > 0 and soft top-k weight p >= ``floor``, in canonical order.

    The weights are those of all F affinities of a row, zeros included. At an entry that is left out
    p < ``floor``, so z = p * affinity loses less than ``floor`` times the affinity there and nothing elsewhere;
    see ``weights_at`` for the gradients.

    Args:
        pre: [n, F] pre-activations, finite, float32 or float64; only read.
        k: [n], real, 0 <= k <= F.
        alpha: temperature > 0; if ``weights_at`` is to give it a gradient, the tensor that requires it.
        floor: in (0, 1/2].

    Raises:
        InvalidInput: ``k``, ``alpha`` or ``floor`` is out of range or NaN.
    """
    if not 0 < floor <= 0.5:
        raise InvalidInput(f"floor = {floor}; give the least weight to keep, above 0 and at most 0.5")
    temperature, k = checked(pre, k, alpha)
    pre = pre.detach().contiguous()
    moment = isinstance(alpha, Tensor) and alpha.requires_grad
    found, near = find_threshold(
        pre, k.detach().double(), temperature, lowest_t=math.log(2 * floor), relu=True, moment=moment
    )
    return SoftPairs(near.pairs, found)


def weights_at(values: Tensor, k: Tensor, alpha: Tensor | float, soft: SoftPairs) -> Tensor:
    """The soft top-k weights [nnz] at the pairs of ``soft``, differentiable in ``values``, ``k`` and ``alpha``.

    The sums in the gradients run over all entries of a row; those left out enter as constants. So ``k`` and
    ``alpha`` get the exact gradient of a loss that reads these weights only, and so does every entry of
    ``values``. An entry that was left out gets none, where the dense operator gives -(phi / alpha) * dk with dk
    the gradient of its row's k and phi = p: less than ``floor`` * |dk| / alpha.
    A loss on the dense weights with gradients g at the entries left out would add to dk at most
    sum of phi * |g| over them / sum of phi over all, and to ``values`` phi / alpha times that.

    Args:
        values: [nnz] affinities at ``soft.pairs``: what ``pre`` holds there.
        k: [n] and alpha: as they were given to ``soft_pairs``.
    """
    temperature = as_number(alpha)
    alpha_graph = alpha if isinstance(alpha, Tensor) else None
    if alpha_graph is not None and alpha_graph.requires_grad and soft.threshold.mean_t is None:
        raise InvalidInput("alpha requires a gradient but did not in soft_pairs; give both the same alpha")
    found, rows = soft.threshold, soft.pairs.rows
    if kernels.on_card(values):
        return weighed(values, k, alpha_graph, temperature, offsets_of(rows, len(k)), found, BY_KERNELS)
    return weighed(values, k, alpha_graph, temperature, rows, found, BY_TORCH)


def _weigh(values: Tensor, rows: Tensor, found: Threshold, alpha: float) -> tuple[Tensor, Tensor]:
    t = found.distances(values, rows, alpha)
    return laplace_cdf(t).to(values.dtype), t


def _weigh_back(
    t: Tensor, rows: Tensor, grad: Tensor, found: Threshold, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients_at(found, rows, t, grad, alpha)


BY_TORCH = Way(_weigh, _weigh_back)
"""``where`` are the rows [nnz] int64 of the entries."""


def gradients_at(
    found: Threshold, rows: Tensor, t: Tensor, grad: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``grad [nnz]`` on the weights of some entries gives those entries [nnz], k [n] and alpha [n].

    ``t [nnz]`` are the entries' distances; alpha gets zeros if the threshold has no ``mean_t``.
    """
    share = exp_((found.shift.abs() - found.log_sum).index_select(0, rows) - t.abs())  # Phi'(t) / sum of Phi'
    weighted = share * grad
    d_k = torch.zeros_like(found.pivot).index_add_(0, rows, weighted)
    per_row = found.density() / alpha
    d_values = per_row.index_select(0, rows) * share * (grad - d_k.index_select(0, rows))
    d_alpha = torch.zeros_like(d_k)
    if found.mean_t is not None:
        d_alpha.index_add_(0, rows, weighted * (found.mean_t.index_select(0, rows) - t)).mul_(per_row)
    return d_values, d_k, d_alpha
