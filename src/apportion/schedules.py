"""Annealed numbers: a ``Schedule`` maps the clock to a float, and nothing else decides what a step does."""

from __future__ import annotations

import abc
from typing import Literal

from pydantic import Field, model_validator

from .clock import Clock
from .config import Kind


class Schedule(Kind, abc.ABC):
    """A number as a function of time."""

    @classmethod
    def shorthand(cls, value: object) -> object:
        """A number is that number always."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"kind": "constant", "value": value} if is_number else value

    @abc.abstractmethod
    def __call__(self, clock: Clock) -> float: ...

    @property
    def n_steps(self) -> int:
        """Steps that a run must have for the schedule to reach its end."""
        return 1


class Constant(Schedule):
    """The same number always."""

    kind: Literal["constant"] = "constant"
    value: float

    def __call__(self, clock: Clock) -> float:
        return self.value


class Jump(Schedule):
    """``start``, and ``end`` from the share ``at`` of the run on."""

    kind: Literal["jump"] = "jump"
    start: float
    end: float
    at: float = Field(ge=0, le=1)

    def __call__(self, clock: Clock) -> float:
        return self.start if clock.progress < self.at else self.end


class Linear(Schedule):
    """``start`` until ``begin``, ``end`` from ``until``, a straight line between (shares of the run)."""

    kind: Literal["linear"] = "linear"
    start: float
    end: float
    begin: float = Field(default=0.0, ge=0, le=1)
    until: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Linear:
        if self.until <= self.begin:
            raise ValueError(f"until = {self.until} must come after begin = {self.begin}")
        return self

    def __call__(self, clock: Clock) -> float:
        share = (clock.progress - self.begin) / (self.until - self.begin)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


class LinearSteps(Schedule):
    """``start``, then a straight line to ``end`` over ``steps`` steps of the run, whatever its length."""

    kind: Literal["linear_steps"] = "linear_steps"
    start: float
    end: float
    steps: int = Field(gt=0)

    @property
    def n_steps(self) -> int:
        return self.steps + 1

    def __call__(self, clock: Clock) -> float:
        return self.start + (self.end - self.start) * min(clock.step / self.steps, 1.0)


class WarmupDecay(Schedule):
    """``peak`` with a linear rise over the first steps and a linear fall to zero at the end.

    ``warmup`` and ``decay`` are shares of the run. The first step is already above zero; so is the last.
    """

    kind: Literal["warmup_decay"] = "warmup_decay"
    peak: float = Field(gt=0, allow_inf_nan=False)
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0, le=1)

    def __call__(self, clock: Clock) -> float:
        rise = max(self.warmup * clock.n_steps, 1.0)
        fall = max(self.decay * clock.n_steps, 1.0)
        left = clock.n_steps - clock.step
        return self.peak * max(min((clock.step + 1) / rise, left / fall, 1.0), 0.0)
