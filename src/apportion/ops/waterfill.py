"""The best split of a budget over tokens: every token takes features in its own order until one price stops it.

Token b with its first k features has the error e_b(k). The smallest Σ e_b(k_b) at a given Σ k_b is found by a
price: k_b minimises e_b(k) + price * k. What that takes off is read from the lower convex hull of each token's
errors, whose steps, of all tokens, are bought by falling gain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def prefix_errors(target: Tensor, W_dec: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """[n, k_max + 1]: squared error of every token with its first 0, 1, …, k_max features. Nothing has gradients.

    Args:
        target: [n, d_in], what the directions are to sum to: x - b_dec.
        W_dec: [d_sae, d_in].
        features: [n, k_max] int64, each token's features in its order.
        values: [n, k_max], with 0 past the end of an order.
    """
    residual = target.clone()
    norms = target.new_empty(features.shape[1] + 1, len(target))
    torch.linalg.vector_norm(residual, dim=1, out=norms[0])
    directions = torch.empty_like(target)
    # One feature of all tokens at a time: a third to a half of the time of Gram matrices or of running sums.
    steps = zip(features.T.contiguous(), values.T.contiguous(), norms[1:], strict=True)
    for feature, value, norm in steps:
        torch.index_select(W_dec, 0, feature, out=directions)
        residual.addcmul_(directions, value[:, None], value=-1)
        torch.linalg.vector_norm(residual, dim=1, out=norm)
    return norms.square_().T.contiguous()


def best_k(errors: Tensor, price: float) -> Tensor:
    """[n] int64: the k that minimises ``errors [n, k_max + 1]`` + price * k, the smallest of equal ones.

    The minimum over all k: errors need not be convex, so the first feature that is not worth its price is no end.
    """
    cost = errors + price * torch.arange(errors.shape[1], dtype=errors.dtype, device=errors.device)
    return (cost == cost.amin(1, keepdim=True)).int().argmax(1)


class Steps(NamedTuple):
    """Edges of convex error curves, in any order: ``width`` further features take off ``gain`` each.

    Both [m] float64; widths are whole, gains above zero.
    """

    gain: Tensor
    width: Tensor


def hull_steps(errors: Tensor) -> Steps:
    """The falling edges of the lower convex hull of every row of ``errors [n, k_max + 1]``, float64."""
    n, columns = errors.shape
    e = errors.reshape(-1)
    k = torch.arange(columns, dtype=e.dtype, device=e.device).repeat(n)
    row = torch.arange(n, device=e.device).repeat_interleave(columns)
    while True:
        slope = e.diff() / k.diff()
        # On or above the line between two points of its row, a point is no corner; all of them can go at once.
        flat = (row[2:] == row[:-2]) & (slope[1:] <= slope[:-1])
        if not bool(flat.any()):
            break
        keep = torch.ones_like(row, dtype=torch.bool)
        keep[1:-1] = ~flat
        e, k, row = e[keep], k[keep], row[keep]
    falls = (row[1:] == row[:-1]) & (slope < 0)
    return Steps(-slope[falls], k.diff()[falls])


class Purchase(NamedTuple):
    """What a budget buys: the error that it takes off, and the price.

    The price is the gain of the last feature, 0 when all steps are bought and features are left.
    """

    saved: float
    price: float


def buy(steps: Steps, budget: float) -> Purchase:
    """The largest fall of the summed error for at most ``budget`` features.

    Exact for budgets that some price attains; between two of them the last step is bought in part, and no split
    does better than that.
    """
    gain, order = steps.gain.sort(descending=True)
    width = steps.width[order]
    end = width.cumsum(0)
    bought = (budget - (end - width)).clamp(min=0).minimum(width)
    last = int((end < budget).sum())
    return Purchase(float(gain @ bought), float(gain[last]) if last < len(gain) else 0.0)


def thinned(steps: Steps) -> tuple[Steps, float]:
    """Five eighths as many steps, sorted, and how much more error their curve can leave, at most, for any budget.

    Neighbours in gain are joined, those three quarters of the pairs that lose least by it. The loss is that of a
    chord over its arc, and no larger for a sum of this curve and others.
    """
    gain, order = steps.gain.sort(descending=True)
    width = steps.width[order]
    pairs = len(gain) // 2
    if pairs == 0:
        return Steps(gain, width), 0.0
    (first, second), (w, v) = gain[: 2 * pairs].view(-1, 2).T, width[: 2 * pairs].view(-1, 2).T
    loss = (first - second) * w * v / (w + v)
    largest = loss.kthvalue(math.ceil(0.75 * pairs)).values
    starts = torch.ones_like(gain, dtype=torch.int64)
    starts[1 : 2 * pairs : 2] = (loss > largest).long()
    group = starts.cumsum(0) - 1
    total = gain.new_zeros(int(group[-1]) + 1)
    joined = total.index_add(0, group, width)
    return Steps(total.index_add(0, group, gain * width) / joined, joined), float(largest)
