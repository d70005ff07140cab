"""Passes over a large matrix a few rows at a time, so that what is computed on the way stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_BYTES = 1 << 20


def row_blocks(a: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of ``a [n, d]``; one for ``a [m]``, and on other devices than the CPU."""
    if a.ndim < 2 or a.device.type != "cpu":
        yield slice(None)
        return
    step = max(_BYTES // max(a[:1].numel() * a.element_size(), 1), 1)
    yield from (slice(first, first + step) for first in range(0, len(a), step))
