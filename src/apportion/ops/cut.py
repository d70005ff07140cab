"""The one number that so many values exceed, found over blocks of which none is kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import InvalidInput

Largest = Callable[[int], Tensor]
"""The ``m`` largest positive values of a block (all, if there are fewer), [<= m] float32, in any order."""


def fit_cut(blocks: Callable[[], Iterator[tuple[int, Largest]]], k: float) -> tuple[float, int, int]:
    """The threshold midway between value number round(k N) and the next; how many exceed it; N.

    Each block hands in several times its share of the largest values. The cut among them is the true one if it is
    no lower than what any block held back; else the blocks are run through again for more.

    Args:
        blocks: each call runs once over all blocks: the number of tokens, and their values.
        k: values per token that are to exceed it.

    Returns:
        0 as the threshold where there are no more positive values than that.

    Raises:
        InvalidInput: there are no tokens.
    """
    surplus = 3.0
    while True:
        kept: list[Tensor] = []
        floor, tokens = 0.0, 0
        for n, largest in blocks():
            share = int(surplus * k * n) + 1
            values = largest(share)
            tokens += n
            kept.append(values)
            if len(values) >= share:
                floor = max(floor, float(values.min()))
        if tokens == 0:
            raise InvalidInput("there are no tokens to calibrate on; hold out more documents")
        values, m = torch.cat(kept), round(k * tokens)
        if len(values) <= m and floor == 0.0:  # fewer positive values than the budget: take them all
            return 0.0, len(values), tokens
        if len(values) > m:
            theta = _between(values.topk(m + 1).values, m)
            if float(theta) >= floor:
                return float(theta), int((values > theta).sum()), tokens
        surplus *= 2


def _between(top: Tensor, m: int) -> Tensor:
    """[]: what the first ``m`` of the falling values ``top [m + 1]`` exceed and the last does not."""
    if m == 0:
        return top[0]
    middle = top[m - 1 :].double().mean().float()
    # Strictly below the last one in, also where the two are neighbours in float32.
    return torch.minimum(middle, torch.nextafter(top[m - 1], middle.new_zeros(())))
