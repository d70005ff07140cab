"""Squared errors of nested prefixes of the dictionary (Matryoshka, Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..config import Config
from ..errors import InvalidConfig
from ..firing import Firing
from ..trace import Dictionary, Trace
from .base import Objective, ObjectiveConfig


class Sampled(Config):
    """Prefixes drawn anew at every step, all different, their sizes from a truncated Pareto law.

    The published code draws 10 with power 1/2: half of the inner prefixes lie within the first quarter.

    Attributes:
        n: how many, the whole dictionary among them.
        power: the share of inner prefixes up to a share s of the dictionary is s to this power.
        least: features of the smallest prefix that can be drawn.
    """

    n: int = Field(default=10, ge=2)
    power: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    least: int = Field(default=1, ge=1)

    def check(self, d_sae: int) -> None:
        """Raise ``InvalidConfig`` if there are not so many different prefixes."""
        if self.n > d_sae - self.least + 1:
            raise InvalidConfig(
                f"{self.n} prefixes of {self.least} features or more cannot all differ where d_sae = {d_sae}; "
                "draw fewer or lower the least"
            )

    def draw(self, d_sae: int) -> Tensor:
        """[n] int64, ascending, the last ``d_sae``; from torch's generator on the CPU."""
        self.check(d_sae)
        share = torch.arange(d_sae - self.least + 1, dtype=torch.float64).log() - math.log(d_sae - self.least)
        # Of share^power, its differences; in logarithms, for steep ones leave the range of float64.
        log_weights = self.power * share[1:] + (-torch.expm1(self.power * -share.diff())).log()
        arrival = (
            torch.empty_like(log_weights).exponential_().log() - log_weights
        )  # the race of torch.multinomial
        inner = arrival.topk(self.n - 1, largest=False).indices.sort().values + self.least
        return torch.cat([inner, torch.tensor([d_sae])])


class NestedConfig(ObjectiveConfig):
    """In place of ``reconstruction``: its sum over nested prefixes of the dictionary, all with the same weight.

    Attributes:
        weight: of the sum. The paper sums; published code divides by the number of prefixes, which is
            ``weight`` = 1/5 for the five here and, under Adam with clipped gradients, changes little.
        prefixes: how many features each has: a share of d_sae up to 1, a count above; or ``Sampled``. The
            whole dictionary is always the last, named or not. The default are the paper's 2,048, 6,144, 14,336,
            30,720 and 65,536 of 65,536.
    """

    auxiliary: ClassVar[bool] = False
    kind: Literal["nested"] = "nested"
    weight: float = Field(default=1.0, gt=0)
    prefixes: tuple[float, ...] | Sampled = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)

    @model_validator(mode="after")
    def _prefixes_increase(self) -> NestedConfig:
        if isinstance(self.prefixes, Sampled):
            return self
        for size in self.prefixes:
            if not (0 < size <= 1 or (size > 1 and float(size).is_integer())):
                raise ValueError(
                    f"the prefix {size:g} is neither a share of d_sae above 0 nor a whole number of features; "
                    "give one of them"
                )
        if any(later <= size for size, later in zip(self.prefixes, self.prefixes[1:], strict=False)):
            sizes = ", ".join(f"{size:g}" for size in self.prefixes)
            raise ValueError(f"the prefixes {sizes} do not increase; give every one larger than the one before")
        return self

    def ends(self, d_sae: int) -> Tensor:
        """[P] int64: features of every prefix, ascending, the last ``d_sae``; drawn anew if they are sampled.

        Raises:
            InvalidConfig: the prefixes do not fit into ``d_sae`` features.
        """
        if isinstance(self.prefixes, Sampled):
            return self.prefixes.draw(d_sae)
        sizes = [round(size * d_sae) if size <= 1 else int(size) for size in self.prefixes]
        if sizes and sizes[-1] > d_sae:
            raise InvalidConfig(
                f"a prefix of {sizes[-1]} features exceeds d_sae = {d_sae}; give at most that many, or a share"
            )
        if not sizes or sizes[-1] < d_sae:
            sizes.append(d_sae)
        if any(later <= size for size, later in zip([0, *sizes], sizes, strict=False)):
            raise InvalidConfig(
                f"prefixes of {', '.join(map(str, sizes))} features do not increase from 1 to d_sae = {d_sae}; "
                "give fewer or larger ones"
            )
        return torch.tensor(sizes)

    def check(self, d_sae: int) -> None:
        if isinstance(self.prefixes, Sampled):
            self.prefixes.check(d_sae)
        else:
            self.ends(d_sae)

    def build(self) -> Nested:
        return Nested(self)


class Nested(Objective):
    """Sum over prefixes m of the mean over tokens of |x - x_hat|^2, x_hat from the first m features and b_dec."""

    name = "nested"

    def __init__(self, config: NestedConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, trace: Trace, dictionary: Dictionary, firing: Firing) -> Tensor:
        ends = self.config.ends(dictionary.d_sae).to(trace.x.device)
        return self.config.weight / len(trace.x) * dictionary.nested_error(trace.x, trace.code, ends)
