"""How much memory a capture takes, told from a model that need not be there: one on the meta device will do."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .capture import capture
from .precision import dtype_of


@dataclass(frozen=True)
class CaptureMemory:
    """What ``capture_to_store`` holds at its peak, in bytes, besides Python and its libraries.

    Attributes:
        parameters: how many the model has.
        weights: all parameters and buffers.
        batch: the states of one batch of contexts: all that the forward pass holds at once, up to the last module
            that is read, or what is read and the rows taken from it, whichever is more.
        shard: the rows of one shard.
    """

    parameters: int
    weights: int
    batch: int
    shard: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.batch + self.shard


def capture_memory(
    model: nn.Module,
    modules: Sequence[str],
    *,
    context: int = 128,
    batch_size: int = 32,
    dtype: str = "float32",
    shard_rows: int = 65_536,
) -> CaptureMemory:
    """The memory for capturing ``modules`` of a language model, counted in one forward pass of a full batch.

    Args:
        model: on any device, "meta" included, where nothing is computed.
        context, batch_size, dtype, shard_rows: as for ``capture_to_store``.

    Raises: as ``capture`` does.
    """
    held = {id(t.untyped_storage()): t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
    device = next(model.parameters()).device
    ids = torch.zeros(batch_size, context, dtype=torch.int64, device=device)
    with _Live(held.values()) as live:
        found = capture(model, modules, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    stored = dtype_of(dtype)
    widths = [state.shape[-1] for state in found.values()]
    states = sum(state.numel() * state.element_size() for state in found.values())
    # Rows are taken from one module's states at a time, and converted where the store's type is another.
    taken = max(s.numel() * (s.element_size() + stored.itemsize * (s.dtype != stored)) for s in found.values())
    return CaptureMemory(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=sum(storage.nbytes() for storage in held.values()),
        batch=max(live.peak, states + taken),
        shard=shard_rows * sum(widths) * stored.itemsize,
    )


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, apart from some, and what they were at most."""

    def __init__(self, apart: Any) -> None:
        super().__init__()
        self._known = {storage._cdata for storage in apart}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True  # models ask whether all of a mask is on, and it is
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
