"""Triton kernels for the operations that torch has no good answer to on a card.

One file per family; these files alone import Triton, and are imported where ``on_card`` says so. The torch code
that a kernel stands in for calls it, so that callers know one function, and remains the way everywhere else.
Every offset into a matrix is an int64, and sums of bfloat16 and float16 are float32.
"""

from __future__ import annotations

import importlib.util
from functools import cache

from torch import Tensor

__all__ = ["on_card"]


def on_card(t: Tensor) -> bool:
    """Whether kernels work on ``t``: it lies on a card and Triton is installed."""
    return t.is_cuda and _triton_is_installed()


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
