"""Exact selection from a bfloat16 product: it says which entries may be chosen, and float32 decides among these.

Let x' and w' be x and w in bfloat16, and c the stored product of x' and w' plus the bias b', so rounded that an
entry is off by at most u |c|. Then

    |x.w + b - c| <= |x - x'| |w| + |x'| |w - w'| + |b - b'| + e + u |c|

with e the rounding of sums in float32, (d + 2) 2^-24 |x| |w| each (Higham 2002, 3.1). The norms of what rounding
took off are measured: that is a third of the bound 2^-7 |x| |w| that holds without looking. So nothing is chosen
wrongly, up to what float32 cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .above import Pairs, entries_above, group_maxima
from .running import Found, joined
from .select import first_of, kth_bound, most, rank_in_rows, sampled_floor

Exact = Callable[[Pairs], Tensor]
RowsAbove = Callable[[Tensor, float], Found]
UNIT = 2.0**-8 * 1.02
"""Relative error of a stored bfloat16 number, and of a bound that is computed with it."""


def screen_band(centred: Tensor, weight: Tensor, b_enc: Tensor, rough: Tensor, rough_weight: Tensor) -> Tensor:
    """[n]: how far an unrounded bfloat16 product of a row can be off, at any feature.

    Args:
        centred: [n, d_in]; rough: the same in bfloat16.
        weight: [d_sae, d_in]; rough_weight: the same in bfloat16.
        b_enc: [d_sae].
    """
    norm = torch.linalg.vector_norm
    sums = 2 * (centred.shape[1] + 2) * 2.0**-24
    lost = norm(centred - rough, dim=1)
    weight_lost = torch.stack([norm(w - r, dim=1).max() for w, r in _blocks(weight, rough_weight)]).max()
    longest = torch.stack([norm(w, dim=1).max() for w, _ in _blocks(weight, rough_weight)]).max()
    length = norm(centred, dim=1) + lost
    bias = (b_enc - b_enc.bfloat16()).abs().max() + b_enc.abs().max() * sums
    band: Tensor = (lost * longest + length * weight_lost + length * longest * sums + bias) * (1 + 1e-5)
    return band


def screened_rows(rough: Tensor, k: Tensor, band: Tensor, dots: Exact) -> tuple[Found, Tensor]:
    """The ``k [n]`` largest strictly positive entries of every row, and [n] bool the rows that stayed undecided.

    Nothing is said of undecided rows.

    Args:
        rough: [n, d_sae] bfloat16, contiguous.
        k: int64, 0 to d_sae.
        band: [n], see ``screen_band``.
        dots: float32 values [nnz] of pairs.
    """
    ordered = rough.view(torch.int16)  # among numbers above zero bits order as numbers do, in half the time
    heads = group_maxima(ordered, most(k))
    kth = kth_bound(ordered, k, heads)[:, 0].contiguous().view(torch.bfloat16).float()
    # A guess that the true k-th entry reaches; whatever is as large must show above it less the error.
    least = (kth * (1 - UNIT) - band / 8).masked_fill(k <= 0, torch.inf)
    pairs, undecided = _may_reach(ordered, least, band, heads)
    values = dots(pairs)
    rank = rank_in_rows(pairs, values, len(k))
    reached = torch.zeros_like(k).index_add_(0, pairs.rows, (values >= least[pairs.rows]).long())
    undecided |= reached < k
    return Found(pairs, values).take((rank < k[pairs.rows]) & ~undecided[pairs.rows]), undecided


def screened_batch(rough: Tensor, m: int, band: Tensor, dots: Exact, rows_above: RowsAbove) -> Found | None:
    """The ``m`` largest entries of all; None where the ``m``-th is not known well enough to be sure.

    Args:
        rough, band, dots: as above.
        rows_above: float32 entries of whole rows (those of a mask [n]) that reach a value.
    """
    least = sampled_floor(rough, m) if m > 0 and rough.numel() else 0.0
    if not least > 0:
        return None
    ordered = rough.view(torch.int16)
    heads = group_maxima(ordered, -(-m // len(band)))
    pairs, undecided = _may_reach(ordered, band.new_full((len(band),), least), band, heads)
    found = Found(pairs, dots(pairs))
    if undecided.any():
        found = joined([found, rows_above(undecided, least)])
    if int((found.values >= least).sum()) < m:
        return None
    return found.take(first_of(found.values, m))


def _may_reach(ordered: Tensor, least: Tensor, band: Tensor, heads: Tensor | None) -> tuple[Pairs, Tensor]:
    """Entries that may truly be ``least [n]`` or more, and [n] bool the rows where that may be any entry.

    Infinity asks for none of a row.
    """
    floor = (least - band) / (1 + UNIT)
    undecided = ~(floor > torch.finfo(torch.bfloat16).tiny)  # NaN too
    down = floor.masked_fill(undecided, torch.inf).bfloat16()
    bits = down.view(torch.int16)
    # Rounded down, and one step more, so that "strictly above" keeps the floor itself.
    bits = torch.where(down.isinf(), bits, bits - (down > floor).to(bits.dtype) - 1)
    return entries_above(ordered, bits[:, None], heads), undecided


def _blocks(a: Tensor, b: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(a.split(1 << 9), b.split(1 << 9), strict=True)
