"""What stands around the tokens of a text in every context, and which positions of a context take part."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ApportionWarning, InvalidConfig

Bos = Literal["auto", "yes", "no"]
"""The token that begins a text, at the front of a context: as the tokenizer does it, always, or never."""


@dataclass(frozen=True)
class Frame:
    """The special tokens around each context.

    Attributes:
        before, after: their ids.
        bos: the id that is put in front of a context that lacks it; None where none is wanted or the tokenizer
            adds it.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    bos: int | None = None

    @property
    def size(self) -> int:
        """Places of a context that are not for the text."""
        return len(self.before) + len(self.after) + (self.bos is not None)

    def around(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The context of the tokens ``ids`` of a text."""
        lacks = self.bos is not None and (len(ids) == 0 or ids[0] != self.bos)
        before = [*([self.bos] if lacks else []), *self.before]
        return np.concatenate([np.array(before, np.int32), ids, np.array(self.after, np.int32)])


def cut_otherwise(skip_first: int, bos: Bos) -> dict[str, Any]:
    """How contexts were cut, as JSON, where it is not the way of before there was a choice."""
    return ({"skip_first": skip_first} if skip_first else {}) | ({"bos": bos} if bos != "auto" else {})


def frame_of(tokenizer: Any, bos: Bos = "auto") -> Frame:
    """The frame that ``tokenizer`` gives a context, with ``bos`` in or out of it.

    Raises ``InvalidConfig`` for another ``bos``, and for a tokenizer without such a token under "yes".
    """
    if bos not in ("auto", "yes", "no"):
        raise InvalidConfig(f"bos = {bos!r} is none of auto, yes and no; choose one of them")
    encoded = tokenizer("a", return_special_tokens_mask=True, truncation=False, padding=False)
    ids, own = encoded["input_ids"], np.flatnonzero(np.equal(encoded["special_tokens_mask"], 0))
    first, last = (int(own[0]), int(own[-1]) + 1) if len(own) else (len(ids), len(ids))
    before, after = tuple(ids[:first]), tuple(ids[last:])
    begin = tokenizer.bos_token_id
    if bos == "yes" and begin is None:
        raise InvalidConfig(
            f"bos = 'yes' and {type(tokenizer).__name__} knows no token that begins a text (BOS); "
            "choose auto or no"
        )
    if bos == "no" and begin is not None and before[:1] == (begin,):
        return Frame(before[1:], after)
    return Frame(before, after, begin if bos == "yes" and before[:1] != (begin,) else None)


def check_frame(tokenizer: Any, context: int, skip_first: int, bos: Bos, name: str) -> None:
    """Refuse a ``skip_first`` that leaves no token of a context, and say so if a model may miss its BOS.

    Args:
        name: of the model, for the sentence.

    Raises ``InvalidConfig``.
    """
    frame = frame_of(tokenizer, bos)
    end = context - len(frame.after)
    if not 0 <= skip_first < end:
        raise InvalidConfig(
            f"skip_first = {skip_first} leaves no token of a context of {context}; expected 0 to {end - 1} "
            "(special tokens count): choose a smaller number"
        )
    begin = tokenizer.bos_token_id
    if bos == "auto" and begin is not None and frame.before[:1] != (begin,):
        warnings.warn(
            f"the tokenizer of {name} knows the BOS {tokenizer.bos_token!r} and adds none; if the model was "
            "trained with it, give bos = yes (--bos yes), and bos = no otherwise",
            ApportionWarning,
            stacklevel=3,
        )
