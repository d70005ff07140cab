"""Token Choice: every token takes its k largest affinities (TopK, Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from ..affinities import Affinities, Survey
from ..budgets import Budget, BudgetConfig, ConstantConfig
from ..budgets.base import rounded
from ..clock import END, Clock
from ..config import Open
from .base import Allocation, AllocatorConfig, Allotting, Calibration, code_at, measured

_UNDECIDED = 0.01
"""How close to a half a real k is computed again in float64; float32 errs by less than a hundredth of it."""


class TokenChoiceConfig(AllocatorConfig):
    """Top k per token, with k from any budget."""

    kind: Literal["token_choice"] = "token_choice"
    budget: Open[BudgetConfig]

    @property
    def mean_k(self) -> float:
        return self.budget.mean_k

    @property
    def learns_from_targets(self) -> bool:
        return self.budget.learns_from_targets

    @classmethod
    def for_k(cls, k: float) -> TokenChoiceConfig:
        return cls(budget=ConstantConfig.parse({"k": k}, "token_choice"))

    def check(self, n_steps: int, batch_size: int, d_sae: int) -> None:
        self.budget.check(d_sae)

    def build(self, *, d_in: int, d_sae: int) -> TokenChoice:
        return TokenChoice(self, d_in=d_in, d_sae=d_sae)


class TokenChoice(Allotting):
    """Top round(k) per token. Its inference rule is itself."""

    config: TokenChoiceConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = True

    def __init__(self, config: TokenChoiceConfig, *, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_sae = d_in, d_sae
        self.budget = config.budget.build(d_in=d_in, d_sae=d_sae)

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        k = self.budget(pre, x, clock)
        pairs = pre.top_rows(self._whole(k, pre, x, clock))
        return Allocation(code_at(pre, pairs), {"k": k})

    def freeze(self) -> TokenChoice:
        frozen = TokenChoice(self.config, d_in=self.d_in, d_sae=self.d_sae)
        frozen.load_state_dict(self.state_dict())
        return frozen

    def calibrate(self, survey: Survey, k: float) -> Calibration:
        """The budget shifted so that its mean, rounded, is ``k`` on the survey."""
        return measured(self.with_budget(self.budget.solve(survey, k)), survey, k)

    def with_budget(self, budget: Budget) -> TokenChoice:
        """The same rule with another budget."""
        config = self.config.model_copy(update={"budget": budget.config})
        other = TokenChoice(config, d_in=self.d_in, d_sae=self.d_sae)
        other.budget = budget
        return other

    def _whole(self, k: Tensor, pre: Affinities, x: Tensor, clock: Clock) -> Tensor:
        """[n] int64. Where rounding errors could tip the scale, and the batch must not, k is computed anew."""
        k = k.detach().double()
        near = ((k.frac() - 0.5).abs() < _UNDECIDED).nonzero().squeeze(1)
        finer = pre.precise(near) if len(near) else None
        if finer is not None:
            k[near] = self.budget(finer, x[near].double(), clock).detach()
        return rounded(k, pre.d_sae)
