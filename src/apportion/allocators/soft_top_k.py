"""A soft top-k with a k that learns (SoftSAE, arXiv 2605.06610), hard at the end and at inference."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..affinities import Affinities
from ..budgets import BudgetConfig, LearnedConfig
from ..budgets.base import rounded
from ..clock import END, Clock
from ..code import Code
from ..config import Open
from ..errors import InvalidConfig
from ..ops.soft_top_k import weights_at
from ..schedules import Constant, Schedule
from .base import Allocation, AllocatorConfig, Allotting, code_at
from .token_choice import TokenChoice, TokenChoiceConfig


class SoftTopKConfig(AllocatorConfig):
    """LapSum weights in training, the k largest at inference.

    Attributes:
        budget: token to k.
        alpha: width of the soft edge, in units of the scaled affinities.
        hard: the last part of the run, under a hard top-k: a share of it if below 1, else a number of steps.
            There k gets no gradient from the reconstruction; its budget's own loss goes on.
        floor: weights below it are left out of the code.
        through_rank: whether affinities also get the gradient of their weights, that of moving up or down among
            their token's affinities. Published: yes; it grows as 1 / alpha and costs reconstruction here.
    """

    kind: Literal["soft_top_k"] = "soft_top_k"
    budget: Open[BudgetConfig]
    alpha: Open[Schedule] = Constant(value=0.003)
    hard: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    floor: float = Field(default=0.01, gt=0, le=0.5)
    through_rank: bool = False

    @property
    def mean_k(self) -> float:
        return self.budget.mean_k

    @property
    def learns_from_targets(self) -> bool:
        return self.budget.learns_from_targets

    @classmethod
    def for_k(cls, k: float) -> SoftTopKConfig:
        return cls(budget=LearnedConfig.parse({"k": k}, "soft_top_k"))

    def soft_steps(self, n_steps: int) -> int:
        """How many of a run's steps come before its hard ones."""
        if self.hard >= 1:
            return n_steps - round(self.hard)
        return math.ceil((1 - self.hard) * n_steps - 1e-9)

    def check(self, n_steps: int, batch_size: int, d_sae: int) -> None:
        self.budget.check(d_sae)
        soft = self.soft_steps(n_steps)
        if soft < 0 or (soft and self.alpha.n_steps > soft):
            needed = self.alpha.n_steps + n_steps - soft
            raise InvalidConfig(
                f"alpha takes {self.alpha.n_steps} steps and the hard stage {n_steps - soft}, but the run has "
                f"{n_steps}; train for {needed} steps or more, or shorten them"
            )
        for step in range(0, soft, max(soft // 1000, 1)):
            alpha = self.alpha(Clock(step, n_steps))
            if not 0 < alpha < math.inf:
                raise InvalidConfig(f"alpha is {alpha:g} at step {step}; give a schedule that stays above 0")

    def build(self, *, d_in: int, d_sae: int) -> SoftTopK:
        return SoftTopK(self, d_in=d_in, d_sae=d_sae)


class SoftTopK(Allotting):
    """z = p a, with weights p in [0, 1] that sum to the token's k; k learns through them.

    Entries with p below ``floor`` are left out, so that the code stays sparse: each misses less than ``floor``
    times its affinity. See ``ops.soft_top_k.weights_at`` for what the gradients miss.
    """

    config: SoftTopKConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False

    def __init__(self, config: SoftTopKConfig, *, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_sae = d_in, d_sae
        self.budget = config.budget.build(d_in=d_in, d_sae=d_sae)

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        k = self.budget(pre, x, clock)
        if clock.step >= self.config.soft_steps(clock.n_steps) or pre.n == 0:
            return Allocation(code_at(pre, pre.top_rows(rounded(k, pre.d_sae))), {"k": k})
        alpha = self.config.alpha(clock)
        # A k that is not a number is for the loss to show, not for this to stumble over.
        soft = pre.soft_rows(k.detach().nan_to_num(nan=0.0), alpha, self.config.floor)
        affinity = pre.at(soft.pairs)
        ranked = affinity if self.config.through_rank else affinity.detach()
        values = affinity * weights_at(ranked, k, alpha, soft)
        return Allocation(Code.from_pairs(*soft.pairs, values, pre.n, pre.d_sae), {"k": k})

    def freeze(self) -> TokenChoice:
        frozen = TokenChoice(TokenChoiceConfig(budget=self.config.budget), d_in=self.d_in, d_sae=self.d_sae)
        frozen.budget.load_state_dict(self.budget.state_dict())
        return frozen
