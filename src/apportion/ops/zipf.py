"""The Zipf-Mandelbrot curve of densities by rank, fitted, and the quotas that share a budget along it.

The density of the feature of rank r = 1 ... F is C / (r + beta)^s, except at the low end, where features are
rare, dying or dead (Ayonrinde 2024, arXiv 2411.02124).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidInput

FEWEST = 8
"""The smallest number of positive densities that a curve can be fitted to."""

_POINTS = 128  # ranks that a fit looks at
_BETAS = 16  # offsets tried at once
_ZOOMS = 4
_ROUNDS = 5  # of reweighting, for every set of offsets
_BETA_MIN = -0.9
_S_MIN, _S_MAX = 1e-6, 30.0
_FEW_FIRINGS = 10.0
_SCALE_MIN = 0.01  # of log density: residuals of 1 % are noise whatever the others are

_UNIT = 1 << 40  # one selection, in the fixed-point arithmetic of whole quotas
_GOLDEN = int((5**0.5 - 1) / 2 * _UNIT)


class ZipfMandelbrot(NamedTuple):
    """The curve C / (rank + beta)^s of falling densities; C > 0, beta > -1, s > 0."""

    C: float
    beta: float
    s: float

    def at(self, ranks: Tensor) -> Tensor:
        """Densities, float64, at ``ranks`` of any shape; the densest feature has rank 1.

        Raises:
            InvalidInput: C, beta or s is outside its range, 30 being the largest s.
        """
        for name, value, fits, expected in (
            ("C", self.C, 0 < self.C < math.inf, "a positive number"),
            ("beta", self.beta, -1 < self.beta < math.inf, "a number above -1"),
            ("s", self.s, 0 < self.s <= _S_MAX, f"an exponent above 0 and at most {_S_MAX:g}"),
        ):
            if not fits:
                raise InvalidInput(
                    f"{name} = {value:g}, expected {expected}; give one, or fit the curve to densities"
                )
        return torch.exp(math.log(self.C) - self.s * torch.log(ranks.double() + self.beta))


def ranks(density: Tensor) -> Tensor:
    """[F] int64 ranks of ``density [F]``: 1 for the densest feature, ties to the lower feature first."""
    order = density.sort(descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(0, order, torch.arange(1, len(order) + 1, device=order.device))


@torch.no_grad()
def fit_zipf(density: Tensor) -> ZipfMandelbrot:
    """The curve that the densities by rank follow, whatever they do at the low end.

    Log density is fitted at ranks that are evenly spaced in log rank, so that the rare half of the features is a
    fraction of the points. For an offset beta the curve is a line in log(rank + beta), found by least squares
    reweighted with the weights of Cauchy; beta is the one of the smallest robust loss, -0.9 <= beta <= the number
    of positive densities. s stays within 1e-6 ... 30.

    Args:
        density: [F] in any order; only finite positive values count.

    Raises:
        InvalidInput: fewer than ``FEWEST`` positive densities.
    """
    falling = density[(density > 0) & density.isfinite()].sort(descending=True).values
    n = len(falling)
    if n < FEWEST:
        raise InvalidInput(
            f"{n} features have a positive density and a curve takes {FEWEST}; count firings until "
            f"{FEWEST - n} more fire"
        )
    rank = torch.logspace(0, math.log10(n), _POINTS, dtype=torch.float64).round().unique_consecutive()
    height = falling[rank.long().to(falling.device) - 1].double().log().cpu()
    # The smallest density is about one firing, and j firings leave log density uncertain by 1 / sqrt(j).
    firings = (height - height[-1]).exp()
    trust = firings / (firings + _FEW_FIRINGS)

    low, high = math.log1p(_BETA_MIN), math.log1p(n)
    weight = trust.expand(_BETAS, -1)
    for _ in range(_ZOOMS):
        grid = torch.linspace(low, high, _BETAS, dtype=torch.float64)
        x = torch.log(rank + torch.expm1(grid)[:, None])
        top, s, loss, weight = _robust_lines(x, height, trust, weight)
        best = int(loss.argmin())
        weight = weight[best].expand(_BETAS, -1)
        step = (high - low) / (_BETAS - 1)
        low, high = max(low, float(grid[best]) - step), min(high, float(grid[best]) + step)
    return ZipfMandelbrot(math.exp(float(top[best])), math.expm1(float(grid[best])), float(s[best]))


def _robust_lines(x: Tensor, y: Tensor, trust: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lines y = top - s x for many sets of abscissae at once, by reweighting.

    Args:
        x: [betas, points].
        y, trust: [points]; a point's trust is its weight where the line fits.
        weight: [betas, points] to begin with.

    Returns:
        top [betas], s [betas], loss [betas] on one common scale, and the last weights.
    """
    for _ in range(_ROUNDS):
        share = weight / weight.sum(1, keepdim=True)
        x_mean, y_mean = (share * x).sum(1), share @ y
        from_mean = x - x_mean[:, None]
        spread = (share * from_mean * from_mean).sum(1)
        s = (-((share * from_mean) @ y) / spread).clamp(_S_MIN, _S_MAX)
        top = y_mean + s * x_mean
        off = (y - top[:, None] + s[:, None] * x).abs()
        # Common to all offsets, so that their losses compare: that of the one which fits best.
        scale = off.median(1).values.min().clamp(min=_SCALE_MIN)
        wide = 1 + (off / scale).square()
        weight = trust / wide
    return top, s, wide.log() @ trust, weight


def project_quotas(wanted: Tensor, total: float, most: float, *, least: float | None = None) -> Tensor:
    """[F] float64: what every feature may spend, in proportion to ``wanted`` but within bounds.

    q = clamp(c wanted, least, most) with the one c for which the quotas sum to ``total`` (to 1e-9 of it).
    Features that want nothing get ``least``, and share equally what the others cannot hold.

    Solved by fixing, at the c of the free features, whichever side of the bounds is violated more in sum
    (Bitran and Hax 1981): each such feature is at its bound in the solution.

    Args:
        wanted: [F], finite and >= 0, on any scale; ones give uniform quotas.
        total: the budget of a batch, >= 0.
        most: the largest quota, which is the number of tokens of a batch.
        least: the smallest; None for 1 if ``total`` reaches F and 0 otherwise.

    Raises:
        InvalidInput: ``wanted`` is not finite or negative; or F features cannot hold ``total``, or need more.
    """
    n = len(wanted)
    if not bool((wanted.isfinite() & (wanted >= 0)).all()):
        raise InvalidInput(
            f"wanted quotas from {float(wanted.min())} to {float(wanted.max())}, expected finite values >= 0; "
            "pass densities"
        )
    if not 0 <= total <= n * most:
        raise InvalidInput(
            f"a budget of {total:g} does not fit {n} features of at most {most:g} tokens each; "
            f"use a batch of at least {math.ceil(total / max(n, 1))} tokens"
        )
    if least is None:
        least = 1.0 if total >= n else 0.0
    if least * n > total:
        wider = f"a batch of at least {math.ceil(least * n * most / total)} tokens or " if total else ""
        raise InvalidInput(
            f"a budget of {total:g} is too small for {n} features of at least {least:g} each; "
            f"use {wider}a least quota of {'at most ' if total else ''}{total / n:g}"
        )
    want = wanted.double()
    free = want > 0
    n_free = int(free.sum())
    if n_free * most + (n - n_free) * least <= total:
        return torch.full_like(want, (total - n_free * most) / max(n - n_free, 1)).masked_fill_(free, most)
    quota = torch.full_like(want, least)
    while True:
        left = total - float(quota[~free].sum())
        quota = torch.where(free, left * (want / want[free].sum()), quota)
        over, under = quota > most, quota < least
        heavier = float((quota - most)[over].sum()) >= float((least - quota)[under].sum())
        broken = over if heavier else under
        if not bool(broken.any()):
            return quota
        quota = quota.clamp(least, most)
        free &= ~broken


def whole_quotas(quota: Tensor, step: int) -> Tensor:
    """[F] int64: quotas of one step in whole numbers, which average to ``quota`` over the steps.

    With the running sums C_f = q_1 + ... + q_f and the phase phi = frac(golden ratio * step), feature f gets
    floor(C_f + phi) - floor(C_(f-1) + phi): floor(q_f) or one more, and in sum exactly the budget, whatever the
    step. A budget that is not whole is rounded down. No state: the step is all that changes.

    Args:
        quota: [F] >= 0, F >= 1.
        step: >= 0.
    """
    whole = quota.double().floor()
    part = quota.double() - whole
    budget = math.floor(float(part.sum()) + 1e-6)
    part = part * (budget / max(float(part.sum()), budget, 1e-6))
    # In integers, for no rounding may move a quota past its bounds or the sum off the budget.
    running = (part * _UNIT).round().long().cumsum(0)
    rest = budget * _UNIT - int(running[-1])
    phase = step * _GOLDEN % _UNIT
    phase = min(max(phase, rest), _UNIT - 1 + rest)
    passed = (running + phase) // _UNIT
    return whole.long() + passed.diff(prepend=passed.new_zeros(1))
