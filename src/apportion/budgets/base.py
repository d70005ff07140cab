"""The contract of a budget."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from ..config import Kind
from ..errors import InvalidInput
from ..firing import Firing
from ..ops.first_features import first_features
from ..trace import Dictionary, Trace
from ..world import SOLO, World


class BudgetConfig(Kind, abc.ABC):
    """How to build a budget."""

    @property
    @abc.abstractmethod
    def mean_k(self) -> float:
        """Mean features per token that the budget is meant to meet."""

    @property
    def learns_from_targets(self) -> bool:
        """Whether training needs the numbers that come with the tokens (``Batch.target``)."""
        return False

    def check(self, d_sae: int) -> None:
        """Raise ``InvalidConfig`` if it cannot serve so many features; asked before a training begins."""

    @abc.abstractmethod
    def build(self, *, d_in: int, d_sae: int) -> Budget: ...


class BoundedConfig(BudgetConfig):
    """The config of a budget with a mean and bounds.

    Attributes:
        k: mean features per token.
        k_min, k_max: bounds of k; None for k / 4 (but at least 1, or k if that is less) and 4 k, the published
            20 and 320 of AdaptiveK at k = 80.
    """

    k: float = Field(gt=0, allow_inf_nan=False)
    k_min: float | None = Field(default=None, ge=0)
    k_max: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _k_between(self) -> Self:
        low, high = self.bounds
        if not low <= self.k <= high or low == high:
            raise ValueError(
                f"k = {self.k:g} must lie between k_min = {low:g} and k_max = {high:g}, for it is the mean of "
                "what they bound; change one of them"
            )
        if not round(low) <= self.k <= round(high):
            raise ValueError(
                f"k_min = {low:g} and k_max = {high:g} round to {round(low)} and {round(high)}, and k = "
                f"{self.k:g} is not between; widen the bounds"
            )
        return self

    @property
    def mean_k(self) -> float:
        return self.k

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest k."""
        low = max(self.k / 4, min(self.k, 1.0)) if self.k_min is None else self.k_min
        return low, 4 * self.k if self.k_max is None else self.k_max


class Budget(nn.Module, abc.ABC):
    """Gives every token its real-valued k; the rule that uses it rounds.

    The rule passes on what it is told itself: losses, what training steps teach, calibration, the input scale.
    """

    config: BudgetConfig

    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Start from the dictionary as it starts; random numbers come from ``generator``."""

    @abc.abstractmethod
    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Tensor:
        """[n] in the type of ``x`` or wider, at least 0, differentiable in the budget's own parameters.

        ``x [n, d_in]`` is the scaled input; given in float64, k is computed in float64.
        """

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        """Losses, already weighted, that this budget is trained by; ``trace.notes["k"]`` is what it gave."""
        return {}

    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        """Learn from a finished training step, into buffers."""

    def revisits(self, clock: Clock) -> bool:
        """Whether ``observe`` asks the affinities of this step; see ``Allocator.revisits``."""
        return False

    @abc.abstractmethod
    def solve(self, survey: Survey, k: float) -> Budget:
        """A copy, shifted so that its mean over the survey's tokens, rounded, meets ``k``."""

    def cut(self, n: int, *, d_in: int) -> Budget:
        """The same over the first ``n`` features, as if no token wanted the others; see ``Allocator.cut``."""
        other = self.config.build(d_in=d_in, d_sae=n)
        other.load_state_dict(first_features(self.state_dict(), other.state_dict()), assign=True)
        return other

    def fold(self, scale: float) -> None:
        """Take over the input scale: from now on inputs are the raw ones, ``scale`` times smaller."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]


def meet(k: float, allotted: Callable[[float], Tensor], low: float, high: float, halvings: int = 80) -> float:
    """An offset at which the mean of ``allotted(offset)``, which rises with it in steps, is nearest to ``k``.

    It is the middle of those that are equally near, so that neither rounding it to float32 nor tokens that tie
    can tip it over an edge.

    The interval from ``low`` to ``high`` is halved ``halvings`` times: 80 lead to neighbouring float64 numbers.

    Raises:
        InvalidInput: the mean does not pass ``k`` between ``low`` and ``high``.
    """

    def mean(offset: float) -> float:
        return float(allotted(offset).double().mean())

    def edge(over: Callable[[float], bool]) -> tuple[float, float]:
        """Neighbouring offsets, the mean of the second of which is ``over``."""
        below, above = low, high
        for _ in range(halvings):
            middle = (below + above) / 2
            below, above = (below, middle) if over(mean(middle)) else (middle, above)
        return below, above

    if not mean(low) <= k <= mean(high):
        raise InvalidInput(
            f"no offset gives these tokens {k:g} features on average, only {mean(low):g} to {mean(high):g}; "
            "change k or the bounds of the budget"
        )
    nearest = min((mean(offset) for offset in edge(lambda m: m >= k)), key=lambda m: abs(m - k))
    return (edge(lambda m: m >= nearest)[1] + edge(lambda m: m > nearest)[0]) / 2


def rounded(k: Tensor, most: int) -> Tensor:
    """[n] int64: whole numbers of features from real ones, within [0, ``most``]; NaN gives 0."""
    # In float64: neither a large k nor a narrow default dtype may change what it rounds to.
    return k.detach().double().nan_to_num(nan=0.0).clamp(0, most).round().to(torch.int64)
