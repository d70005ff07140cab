"""How much of a known dictionary was learned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InvalidInput
from .base import wide


def recovered(directions: Tensor, W_dec: Tensor, threshold: float = 0.9) -> float:
    """The share of true features that the dictionary holds.

    A true feature is held if its cosine with some learned one is above ``threshold`` and each of the two is
    the other's nearest, so a learned feature counts for one true feature at most. (Above 0.71, a learned
    feature is that near to two true ones only if these have a cosine above 2 · threshold² − 1, 0.62 for 0.9.)
    A direction of length 0 is near to none; opposite directions are far apart.

    Args:
        directions: [n_features, d_in] the true ones, of any length.
        W_dec: [d_sae, d_in] the learned ones, of any length.
        threshold: in [0, 1).

    Raises:
        InvalidInput: the widths differ, one of them has no row, or ``threshold`` is out of range.
    """
    if directions.dim() != 2 or W_dec.dim() != 2 or directions.shape[1] != W_dec.shape[1]:
        raise InvalidInput(
            f"true directions {list(directions.shape)} and W_dec {list(W_dec.shape)} have no width in common; "
            "pass [n_features, d_in] and [d_sae, d_in]"
        )
    if len(directions) == 0 or len(W_dec) == 0:
        raise InvalidInput(
            f"{len(directions)} true and {len(W_dec)} learned features leave nothing to compare; "
            "pass one or more of each"
        )
    if not 0 <= threshold < 1:
        raise InvalidInput(f"threshold = {threshold}; expected a cosine in [0, 1): 0.9 is usual")
    cosine = normalize(wide(directions)) @ normalize(wide(W_dec)).T
    best, learned = cosine.max(1)
    mutual = cosine.argmax(0)[learned] == torch.arange(len(cosine), device=cosine.device)
    return float(((best > threshold) & mutual).double().mean())
