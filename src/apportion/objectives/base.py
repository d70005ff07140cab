"""The contract of an objective."""

from __future__ import annotations

import abc

from torch import Tensor

from ..config import Kind
from ..firing import Firing
from ..trace import Dictionary, Trace


class ObjectiveConfig(Kind, abc.ABC):
    """How to build an objective."""

    @abc.abstractmethod
    def build(self) -> Objective: ...


class Objective(abc.ABC):
    """A loss over a trace. Pure: it reads ``firing`` and changes nothing."""

    name: str

    @abc.abstractmethod
    def __call__(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor | None:
        """The weighted loss, [] ; None where it does not apply to this batch."""
