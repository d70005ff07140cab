"""The clock of the benchmarks, and the one dense product that they measure everything against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
NOISE = 0.10
"""Spread of the product, as a share of its median, above which a run is called noisy."""


def timed(
    work: Callable[[], _T], device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> tuple[float, _T]:
    """Seconds that ``work`` takes on ``device``, by ``clock`` unless the card has its own, and its result."""
    if device != "cpu":
        return _timed_by_card(work)
    start = clock()
    result = work()
    return clock() - start, result


def _timed_by_card(work: Callable[[], _T]) -> tuple[float, _T]:
    """The same by the card's own clock, from when it has nothing left to do."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000, result


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one thread: a processor's seconds count threads that only wait, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def products(x: Tensor, d_sae: int) -> dict[str, Callable[[], Tensor]]:
    """The encoder's product of ``x [n, d_in]`` with its weights in either layout, of the kind of ``x``."""
    weight = torch.randn(d_sae, x.shape[1], generator=torch.Generator().manual_seed(1)).to(x)
    turned, bias = weight.T.contiguous(), weight.new_zeros(d_sae)
    return {
        "feature-major": lambda: torch.addmm(bias, x, weight.T),
        "input-major": lambda: torch.addmm(bias, x, turned),
    }


def noisy(product_spread: float | None) -> bool | None:
    """Whether the product varied by more than ``NOISE``; None where that is not known."""
    return None if product_spread is None else product_spread > NOISE


def spread(times: Sequence[float]) -> float | None:
    """The width of the middle 80 % of the times, as a share of their median; None of a single one."""
    if len(times) < 2:
        return None
    cuts = statistics.quantiles(times, n=10)
    return (cuts[-1] - cuts[0]) / statistics.median(times)
