"""The contract of an objective."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor

from ..config import Kind
from ..firing import Firing
from ..trace import Dictionary, Trace


class ObjectiveConfig(Kind, abc.ABC):
    """How to build an objective.

    Class attributes:
        auxiliary: comes on top of a loss that reconstructs; the benchmark's plain rows leave it out.
    """

    auxiliary: ClassVar[bool] = True

    def check(self, d_sae: int) -> None:
        """Raise ``InvalidConfig`` if it cannot be had with so many features; asked before a training begins."""

    @abc.abstractmethod
    def build(self) -> Objective: ...


class Objective(abc.ABC):
    """A loss over a trace. Pure: it reads ``firing`` and changes nothing; random numbers come from torch's
    generator."""

    name: str

    @abc.abstractmethod
    def __call__(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor | None:
        """The weighted loss, [] ; None where it does not apply to this batch."""
