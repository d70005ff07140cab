"""The contract of an objective."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..clock import END, Clock
from ..config import Kind
from ..firing import Firing
from ..trace import Dictionary, Trace
from ..world import SOLO, World


class ObjectiveConfig(Kind, abc.ABC):
    """How to build an objective.

    Class attributes:
        auxiliary: comes on top of a loss that reconstructs; the benchmark's plain rows leave it out.
        prices: sets the price of what a penalised rule pays.
    """

    auxiliary: ClassVar[bool] = True
    prices: ClassVar[bool] = False

    def check(self, d_sae: int) -> None:
        """Raise ``InvalidConfig`` if it cannot be had with so many features; asked before a training begins."""

    @abc.abstractmethod
    def build(self) -> Objective: ...


class Objective(nn.Module, abc.ABC):
    """A loss over a trace. ``forward`` is pure: it reads ``firing`` and changes nothing; random numbers come from
    torch's generator.

    What an objective learns from a step it writes in ``observe``, into buffers, which checkpoints hold.
    """

    name: str

    @abc.abstractmethod
    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor | None:
        """The weighted loss, [] ; None where it does not apply to this batch."""

    def observe(self, trace: Trace, world: World = SOLO) -> None:
        """Learn from a finished training step, into buffers."""

    def report(self, clock: Clock = END) -> Mapping[str, Any]:
        """What of it belongs into the metadata of the SAE whose training ended at ``clock``, JSON."""
        return {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]
