"""Interventions: a code in which one feature is clamped, and what that does to a token's number of features."""

from __future__ import annotations

import math
import operator
from typing import Literal, NamedTuple, SupportsComplex, SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from .affinities import Ordered
from .code import Code
from .errors import InvalidConfig, InvalidInput

OnBudget = Literal["keep", "recompute"]
"""What happens to a token's number of features; see ``SAE.intervene``."""


class Intervention(NamedTuple):
    """What came of clamping a feature.

    Attributes:
        x_hat: [..., d_in].
        code: the edited code.
    """

    x_hat: Tensor
    code: Code


def check_intervention(feature: object, value: object, k: str, d_sae: int) -> tuple[int, float]:
    """Feature and value as plain numbers, whatever library they come from.

    Raises ``InvalidInput`` for a feature or value that no code can hold, ``InvalidConfig`` for an unknown k.
    """
    place = _whole(feature)
    if place is None or not 0 <= place < d_sae:
        raise InvalidInput(
            f"feature {feature!r} is no whole number from 0 to {d_sae - 1}; pass the number of one feature"
        )
    amount = _real(value)
    if not 0 <= amount < math.inf:
        raise InvalidInput(
            f"a feature was to be clamped to {value!r}; pass a finite number, at least 0 (0 takes it out)"
        )
    if k not in ("keep", "recompute"):
        raise InvalidConfig(f'k = {k!r} says nothing of the budget; choose "keep" or "recompute"')
    return place, amount


def _whole(number: object) -> int | None:
    if isinstance(number, bool) or not isinstance(number, SupportsIndex):
        return None
    if isinstance(number, Tensor) and number.dtype == torch.bool:
        return None
    try:
        return operator.index(number)
    except TypeError:  # a tensor of floats looks as if it had one
        return None


def _real(number: object) -> float:
    """NaN for what is no real number."""
    if isinstance(number, Tensor):
        number = number.detach() if number.numel() == 1 else None
    elif isinstance(number, SupportsComplex):  # a real number of any library has no such conversion
        return math.nan
    try:
        return float(number) if isinstance(number, SupportsFloat) else math.nan
    except (RuntimeError, OverflowError):  # a complex tensor, or an integer beyond any float
        return math.nan


def clamped_at_k(code: Code, order: Ordered, feature: int, value: float) -> Code:
    """``code`` with ``feature`` at ``value`` for every token, each with as many features as before.

    Where the feature is new, the token's last other feature in the order goes. Where it is taken out, the first
    one in the order that the token has not yet comes in, at the value that the order gives it. A token that had
    none has one then; one whose order has no further feature has one less.

    Args:
        code: a prefix of the order for every token.
        order: one place more than the largest token has features.
    """
    has = _in_code(code, torch.full_like(order.features[:, :1], feature))[:, 0]
    if value == 0:
        free = (order.values > 0) & ~_in_code(code, order.features)
        rows = (has & free.any(1)).nonzero()[:, 0]
        place = free.long().argmax(1)[rows]
        filled = order.values[rows, place]
    else:
        taken = (order.values > 0) & _in_code(code, order.features)
        rows = (~has & taken.any(1)).nonzero()[:, 0]
        place = order.features.shape[1] - 1 - taken.flip(1).long().argmax(1)[rows]
        filled = order.values.new_zeros(len(rows))
    swapped = code.edited(rows, order.features[rows, place], filled)
    return swapped.clamped(feature, value)


def _in_code(code: Code, features: Tensor) -> Tensor:
    """[n, m]: whether each token of ``code`` has each of its ``features [n, m]``, with a value above zero."""
    firing = code.values > 0
    own = code.rows[firing] * code.d_sae + code.indices[firing]
    row = torch.arange(code.n, device=features.device)[:, None]
    return torch.isin(row * code.d_sae + features, own)
