"""``Item``: what a model is fed for one document when that is no text, such as the pixels of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidInput
from .capture import capture, keep_mask
from .contexts import Cutter, Window
from .models import LoadedModel


@dataclass(frozen=True, eq=False)
class Item:
    """One document as tensors.

    Attributes:
        id: what splits and figures call it.
        inputs: what the model takes for it, by name (``pixel_values``, or ``input_ids`` with an
            ``attention_mask``), each without the batch dimension: items are stacked, those of equal shapes
            together.
        target: a number that a rule may learn from, the same for all its rows.
    """

    id: str
    inputs: Mapping[str, Tensor]
    target: float | None = None

    def __post_init__(self) -> None:
        if not self.inputs or not all(isinstance(value, Tensor) for value in self.inputs.values()):
            raise InvalidInput(f"item {self.id!r} has inputs that are no tensors; give a tensor by each name")

    def digest(self) -> str:
        """A hash of all its tensors."""
        found = hashlib.sha256()
        for name, value in sorted(self.inputs.items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()


class ItemCutter(Cutter[Item]):
    """One context per item; the positions that ``keep_mask`` keeps, from ``skip_first`` on, give its rows.

    How many positions there are is found out by one small forward pass for every new shape of inputs.
    """

    def __init__(self, loaded: LoadedModel, modules: Sequence[str], skip_first: int = 0) -> None:
        self._loaded, self._modules, self._skip_first = loaded, modules, skip_first
        self._special = getattr(loaded.tokenizer, "all_special_ids", ())
        self._known: dict[object, int] = {}

    def windows(self, documents: Sequence[Item], first: int) -> list[Iterable[Window]]:
        return [self._window(item, number) for number, item in enumerate(documents, first)]

    def _window(self, item: Item, number: int) -> list[Window]:
        inputs = {name: value.detach() for name, value in item.inputs.items()}
        blank = Window(np.zeros(0, np.int32), np.zeros(0, np.bool_), number, 0, inputs)
        if blank.shapes not in self._known:
            self._known[blank.shapes] = positions_and_width(self._loaded, self._modules, inputs)[0]
        positions = self._known[blank.shapes]
        one = {name: value[None].cpu() for name, value in inputs.items()}
        keep = keep_mask(one, self._special, torch.empty(1, positions, 0))[0].numpy()
        if len(keep) != positions:
            raise InvalidInput(
                f"item {item.id!r} has {len(keep)} tokens and {self._modules[0]!r} gives {positions} positions; "
                "expected one position per token: choose another module"
            )
        keep = keep & (np.arange(positions) >= self._skip_first)
        return [Window(blank.ids, keep, number, 0, inputs)] if keep.any() else []


def positions_and_width(
    loaded: LoadedModel, modules: Sequence[str], inputs: Mapping[str, Tensor]
) -> tuple[int, int]:
    """How many positions the ``modules`` give for one context, and the width of the first of them.

    Two of it are run, since a tensor that is shared by all contexts of a batch ([1, positions, width]) looks
    like a hidden state while the batch has one.

    Raises: ``InvalidInput`` for a module that gives no state per context, or other positions than another.
    """
    twice = {name: torch.stack([value, value]).to(loaded.device) for name, value in inputs.items()}
    found = {path: tuple(hidden.shape) for path, hidden in capture(loaded.model, modules, twice).items()}
    positions = next(iter(found.values()))[1]
    for path, shape in found.items():
        if shape[:2] != (2, positions):
            raise InvalidInput(
                f"module {path!r} gives {shape} for 2 contexts; expected [2, {positions}, width], a state for "
                "every position of each: choose a layer or block of the model"
            )
    return positions, found[modules[0]][2]
