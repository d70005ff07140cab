"""The clock of the benchmarks, and the one dense product that they measure everything against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
NOISE = 0.10
"""Spread of the product, as a share of its median, above which a run is called noisy."""


def timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds that ``work`` takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def products(x: Tensor, d_sae: int) -> dict[str, Callable[[], Tensor]]:
    """The encoder's product of ``x [n, d_in]`` with its weights in either layout."""
    weight = torch.randn(d_sae, x.shape[1], generator=torch.Generator().manual_seed(1))
    turned, bias = weight.T.contiguous(), torch.zeros(d_sae)
    return {
        "feature-major": lambda: torch.addmm(bias, x, weight.T),
        "input-major": lambda: torch.addmm(bias, x, turned),
    }


def spread(times: Sequence[float]) -> float:
    """The width of the middle 80 % of the times, as a share of their median."""
    cuts = statistics.quantiles(times, n=10)
    return (cuts[-1] - cuts[0]) / statistics.median(times)
