"""Large buffers that a training step uses again and again: fresh memory costs more to map than to fill."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Lends one buffer per name and shape. A lent buffer is valid until both are lent again."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def lend(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of ``shape`` with the dtype and device of ``like``."""
        held = self._buffers.get((name, shape))
        if held is None or held.dtype != like.dtype or held.device != like.device:
            held = self._buffers[name, shape] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return held

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()
