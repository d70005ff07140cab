"""Which captured tokens take part: not those whose norm is far above that of all others.

In a trained language model the first position of a context, and a few delimiters, can carry activations a
hundred times the usual norm (*attention sinks*). They hold nearly all of the variance, so while they take part
any ratio of sums, any mean scale and any rule whose rows compete says nothing. They are stored and marked, and
left out of training, calibration and figures unless a caller asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidConfig, InvalidInput
from .splits import Bools

OUTLIERS = 10.0
"""Times the median norm: what dictionary_learning recommends; in the models tried here only sinks are above."""

MEDIAN_ROWS = 8192
"""Rows, the first ones, that the median norm is taken over, so that it is known before the first shard."""

Policy = Mapping[str, Any]
"""What a source or an SAE's metadata says of the tokens that take part, as JSON; see ``policy``."""


def check_outliers(multiple: float | None) -> float | None:
    """``multiple`` as it is. Raises ``InvalidConfig`` unless it is above 1 (or None, which keeps all)."""
    if multiple is not None and not 1 < multiple < float("inf"):
        raise InvalidConfig(
            f"outliers = {multiple:g} puts the bound at or below the median norm, which leaves out half of the "
            "tokens; expected a multiple of the median above 1: give 10, or None to keep all tokens"
        )
    return multiple


def norm_bound(x: Tensor, multiple: float | None) -> float | None:
    """The norm above which a token takes no part: ``multiple`` times the median norm of the rows ``x [n, d]``.

    None, no bound, for ``multiple`` None, for no rows, and where half of the rows are zero.
    """
    if multiple is None or len(x) == 0:
        return None
    median = float(norms(x).median())
    return multiple * median if median > 0 else None


def beyond(x: Tensor, bound: float | None) -> Bools:
    """[n] which rows of ``x [n, d]`` are longer than ``bound``; none without one."""
    if bound is None:
        return np.zeros(len(x), np.bool_)
    found: Bools = (norms(x) > bound).cpu().numpy()
    return found


def norms(x: Tensor) -> Tensor:
    """[n] float32 lengths of the rows ``x [n, d]`` of any float type."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
    return lengths.float()


@dataclass(frozen=True)
class Outliers:
    """How many tokens take no part, and where they sit.

    Attributes:
        rows: tokens that take no part.
        first: those of them that are the first captured token of their context.
        tokens: all tokens, these included.
        outliers, bound: the multiple of the median norm, and what that comes to.
    """

    rows: int
    first: int
    tokens: int
    outliers: float
    bound: float

    def sentence(self) -> str:
        """What a person is told of it."""
        return (
            f"{self.rows:,} of {self.tokens:,} tokens ({self.rows / self.tokens:.2%}) have a norm above "
            f"{self.bound:,.4g}, {self.outliers:g} times the median, and take no part in training and figures; "
            f"{self.first / self.rows:.0%} of them are the first of their context (keep_outliers=True, on the "
            "command line --keep-outliers, lets them take part)"
        )


def policy(
    *,
    outliers: float | None,
    bound: float | None,
    left_out: int | None = None,
    keep_outliers: bool = False,
) -> dict[str, Any]:
    """The JSON that says which captured tokens take part, for ``describe`` and an SAE's metadata.

    Args:
        left_out: rows of the source that take no part, where that is known.
    """
    told: dict[str, Any] = {"outliers": outliers, "norm_bound": bound}
    if left_out is not None:
        told["left_out"] = left_out
    return told | ({"keep_outliers": True} if keep_outliers else {})


def check_policy(trained: Mapping[str, Any], here: Mapping[str, Any], name: str) -> None:
    """Refuse a source in which other tokens take part than in the one that an SAE was trained on.

    Args:
        trained, here: what the two sources say of themselves; one of before policies let all tokens take part.
        name: of the SAE.

    Raises:
        InvalidInput: naming the settings that differ.
    """
    old, new = trained.get("tokens") or {}, here.get("tokens") or {}
    changed = [
        f"{key} = {trained.get(key, usual)!r} and here {here.get(key, usual)!r}"
        for key, usual in (("skip_first", 0), ("bos", "auto"))
        if trained.get(key, usual) != here.get(key, usual)
    ]
    if _multiple(old) != _multiple(new) and (_leaves_out(old) or _leaves_out(new)):
        changed.append(f"outliers = {_multiple(old)} and here {_multiple(new)}")
    if changed:
        raise InvalidInput(
            f"{name} was trained on the tokens that take part under {'; '.join(changed)}, so its figures would "
            "be those of other tokens; use a store that was captured, and is read, under the policy of the SAE"
        )


def _multiple(told: Policy) -> float | None:
    return None if told.get("keep_outliers") else told.get("outliers")


def _leaves_out(told: Policy) -> bool:
    """Whether it leaves out any token, or might: a bound that no token exceeds is as good as none."""
    bounded = _multiple(told) is not None and told.get("norm_bound") is not None
    return bounded and told.get("left_out") != 0
