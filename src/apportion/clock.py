"""Time as an argument: every annealed number is a function of a ``Clock``, never of a flag."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Where a training run is.

    Attributes:
        step: optimiser steps already taken, counted from 0.
        n_steps: steps of the whole run, at least 1.
        tokens: training tokens already seen.
    """

    step: int
    n_steps: int
    tokens: int = 0

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]."""
        return min(self.step / max(self.n_steps, 1), 1.0)


END = Clock(step=1, n_steps=1)
"""The clock of inference: training is over."""
