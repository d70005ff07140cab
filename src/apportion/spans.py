"""Named stretches of a step: seen by torch's profiler, and timed where somebody listens."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextvars import ContextVar

from torch.profiler import record_function

_listener: ContextVar[dict[str, float] | None] = ContextVar("apportion_spans", default=None)


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Mark what runs inside as ``name``."""
    seconds = _listener.get()
    start = time.perf_counter()
    with record_function(name):
        yield
    if seconds is not None:
        seconds[name] += time.perf_counter() - start


@contextlib.contextmanager
def listening() -> Iterator[dict[str, float]]:
    """Collect the seconds (host time) of every span that ends inside, by name."""
    seconds: dict[str, float] = defaultdict(float)
    token = _listener.set(seconds)
    try:
        yield seconds
    finally:
        _listener.reset(token)
