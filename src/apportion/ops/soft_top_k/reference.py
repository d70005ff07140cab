"""The soft top-k by sorting every row, the truth that ``fast`` is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_top_k_reference(a: Tensor, k: Tensor, alpha: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Weights p [n, F] of ``a [n, F]`` with p_f = Phi((a_f - b) / alpha), Phi the Laplace CDF, and sum k [n].

    LapSum, arXiv 2503.06242. Computed in ``dtype``.
    """
    t = _distances(a.to(dtype), k.to(dtype), alpha)
    half = (-t.abs()).exp() / 2
    return torch.where(t < 0, half, 1 - half)


def soft_top_k_gradients_reference(
    a: Tensor, k: Tensor, alpha: float, grad: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``grad [n, F]`` on the weights gives ``a [n, F]``, ``k [n]`` and ``alpha``; all zero at k = F."""
    grad = grad.to(dtype)
    t = _distances(a.to(dtype), k.to(dtype), alpha)
    density = (-t.abs()).exp() / 2
    share = torch.softmax(-t.abs(), dim=1) * (k < a.shape[1])[:, None]  # density / its sum, without underflow
    mean_grad = (share * grad).sum(1, keepdim=True)
    mean_t = (share * t).sum(1, keepdim=True)
    d_a = density / alpha * (grad - mean_grad)
    d_alpha = -(density / alpha * (t - mean_t) * grad).sum()
    return d_a, mean_grad[:, 0], d_alpha


def _distances(a: Tensor, k: Tensor, alpha: float) -> Tensor:
    """t [n, F] = (a - b) / alpha, with b held as an entry plus alpha times a shift."""
    width = a.shape[1]
    c = a.sort(dim=1, descending=True).values
    ranks = torch.arange(1, width + 1, dtype=a.dtype, device=a.device)
    # The sum of weights if b were the j-th entry: j - above_j / 2 + (those from j on) / 2 - 1/2 for j itself.
    x = (c - c[:, :1]) / alpha
    above = (x + torch.logcumsumexp(-x, 1)).exp()
    below = (torch.logcumsumexp(x.flip(1), 1).flip(1) - x).exp()
    sums = ranks - above / 2 + (below - 1) / 2
    j = (sums < k[:, None]).sum(1)  # entries above b: 0 to F
    upper = c.gather(1, (j - 1).clamp(min=0)[:, None])
    lower = c.gather(1, j.clamp(max=width - 1)[:, None])
    is_above = ranks <= j[:, None]
    log_p = (-(c - upper) / alpha).masked_fill(~is_above, -torch.inf).logsumexp(1)
    log_q = ((c - lower) / alpha).masked_fill(is_above, -torch.inf).logsumexp(1)
    gap = ((upper - lower) / alpha)[:, 0]
    # j - k - P e^-z / 2 + Q e^-y / 2 = 0 with y = (b - lower) / alpha, z = (upper - b) / alpha, y + z = gap
    excess, least = j - k, torch.finfo(a.dtype).tiny  # k = 0 and k = F put b infinitely far away
    excess = torch.where(j == 0, excess.clamp(max=-least), excess)
    excess = torch.where(j == width, excess.clamp(min=least), excess)
    log_excess = excess.abs().log()
    log_root = torch.logaddexp(log_excess, torch.logaddexp(2 * log_excess, log_p + log_q - gap) / 2)
    below_middle = excess <= 0
    pivot = torch.where(below_middle[:, None], lower, upper)
    shift = torch.where(below_middle, log_q - log_root, log_root - log_p)
    return (a - pivot) / alpha - shift[:, None]
