"""Token Choice: every token takes its k largest affinities (TopK, Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..affinities import Affinities
from ..budgets import BudgetConfig, ConstantConfig
from ..clock import END, Clock
from ..config import Open
from .base import Allocation, Allocator, AllocatorConfig, code_at


class TokenChoiceConfig(AllocatorConfig):
    """Top k per token, with k from any budget."""

    kind: Literal["token_choice"] = "token_choice"
    budget: Open[BudgetConfig]

    @property
    def mean_k(self) -> float:
        return self.budget.mean_k

    @classmethod
    def for_k(cls, k: float) -> TokenChoiceConfig:
        return cls(budget=ConstantConfig.parse({"k": k}, "token_choice"))

    def build(self, *, d_in: int, d_sae: int) -> TokenChoice:
        return TokenChoice(self, d_in=d_in, d_sae=d_sae)


class TokenChoice(Allocator):
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
        k = self.budget(pre, x, clock).detach()
        # In float64: neither a large k nor a narrow default dtype may change what it rounds to.
        whole = k.double().nan_to_num(nan=0.0).clamp(0, pre.d_sae).round().to(torch.int64)
        pairs = pre.top_rows(whole)
        return Allocation(code_at(pre, pairs))

    def freeze(self) -> TokenChoice:
        frozen = TokenChoice(self.config, d_in=self.d_in, d_sae=self.d_sae)
        frozen.load_state_dict(self.state_dict())
        return frozen

    def fold(self, scale: float) -> None:
        self.budget.fold(scale)
