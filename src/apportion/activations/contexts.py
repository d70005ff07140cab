"""Documents cut into the contexts that a model is fed: windows of tokens, batched with little padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidConfig, InvalidInput


@dataclass(frozen=True, eq=False)
class Window:
    """One context of one document.

    Attributes:
        ids: [L] int32, with the special tokens that the tokenizer puts around it.
        keep: [L] bool, the tokens whose activations are captured.
        document: index of the document.
        start: place of its first kept token among the kept tokens of the document.
    """

    ids: NDArray[np.int32]
    keep: NDArray[np.bool_]
    document: int
    start: int

    @property
    def rows(self) -> int:
        """Number of kept tokens."""
        return int(self.keep.sum())

    def clip(self, rows: int) -> Window:
        """The same context with at most ``rows`` kept tokens."""
        return Window(self.ids, self.keep & (self.keep.cumsum() <= rows), self.document, self.start)


@dataclass(frozen=True, eq=False)
class Contexts:
    """A batch of contexts, padded on the right to the longest.

    Attributes:
        input_ids: [c, L] int64, 0 where padded.
        attention_mask: [c, L] int64, 1 on tokens and 0 on padding.
        keep: [c, L] bool, the positions whose activations are captured.
        document: [c] int64, the document of each context.
        start: [c] int64, place of its first kept token in that document.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    document: Tensor
    start: Tensor

    @property
    def rows(self) -> int:
        """Number of kept tokens."""
        return int(self.keep.sum())

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What the model takes: ``input_ids`` and ``attention_mask``, on ``device``."""
        return {"input_ids": self.input_ids.to(device), "attention_mask": self.attention_mask.to(device)}


def pad(windows: Sequence[Window]) -> Contexts:
    """The windows as one padded batch, in their order."""
    shape = len(windows), max(len(window.ids) for window in windows)
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    keep = np.zeros(shape, np.bool_)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
        mask[row, : len(window.ids)] = 1
        keep[row, : len(window.ids)] = window.keep
    return Contexts(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        keep=torch.from_numpy(keep),
        document=torch.tensor([window.document for window in windows]),
        start=torch.tensor([window.start for window in windows]),
    )


def batch_windows(
    windows: Iterable[Window], batch_size: int, limit_rows: int | None = None
) -> Iterator[Contexts]:
    """Consecutive windows in padded batches, ending after the one that brings ``limit_rows`` kept tokens."""
    batch: list[Window] = []
    rows = 0
    for window in windows:
        batch.append(window)
        rows += window.rows
        full = limit_rows is not None and rows >= limit_rows
        if len(batch) == batch_size or full:
            yield pad(batch)
            batch = []
        if full:
            return
    if batch:
        yield pad(batch)


def check_context(model: Any, tokenizer: Any, context: int) -> None:
    """Refuse a tokenizer that cannot cut windows and a context longer than the model can read.

    Raises ``InvalidInput`` for the first, ``InvalidConfig`` for the second.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        found = "no tokenizer" if tokenizer is None else f"the slow tokenizer {type(tokenizer).__name__}"
        raise InvalidInput(f"the model comes with {found}; expected a fast one: add its tokenizer.json")
    room = context - tokenizer.num_special_tokens_to_add()
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if room < 1 or (isinstance(longest, int) and context > longest):
        raise InvalidConfig(
            f"context = {context} does not fit: expected more than {context - room} special tokens and at "
            f"most {longest or 'any number of'} positions of this model; choose a length between"
        )


def windows_of(texts: Sequence[str], first: int, tokenizer: Any, context: int) -> list[list[Window]]:
    """The contexts of each text that keep at least one token.

    Args:
        texts: of documents ``first``, ``first + 1`` and so on.
        context: most tokens in a window, special tokens included.
    """
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=context,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    special = np.array(sorted(tokenizer.all_special_ids), np.int64)
    result: list[list[Window]] = [[] for _ in texts]
    taken = [0] * len(texts)
    for ids, sample in zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True):
        array = np.array(ids, np.int32)
        keep = ~np.isin(array, special)
        if keep.any():
            result[sample].append(Window(array, keep, first + sample, taken[sample]))
            taken[sample] += int(keep.sum())
    return result
