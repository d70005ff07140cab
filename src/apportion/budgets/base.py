"""The contract of a budget."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn

from ..affinities import Affinities
from ..clock import END, Clock
from ..config import Kind


class BudgetConfig(Kind, abc.ABC):
    """How to build a budget."""

    @property
    @abc.abstractmethod
    def mean_k(self) -> float:
        """Mean features per token that the budget is meant to meet."""

    @abc.abstractmethod
    def build(self, *, d_in: int, d_sae: int) -> Budget: ...


class Budget(nn.Module, abc.ABC):
    """Gives every token its real-valued k; the rule that uses it rounds."""

    @abc.abstractmethod
    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Tensor:
        """[n] float32, at least 0. ``x [n, d_in]`` is the scaled input."""

    @abc.abstractmethod
    def solve(self, k: float) -> Budget:
        """The same budget with its offset shifted so that the mean meets ``k``."""

    def fold(self, scale: float) -> None:
        """Take over the input scale: from now on inputs are the raw ones, ``scale`` times smaller."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]
