"""How often, and how long ago, every feature fired."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .code import Code
from .world import SOLO, World


class Firing(nn.Module):
    """Running density and age of every feature, updated once per training step.

    Args:
        d_sae: number of features.
        dead_after: training tokens without firing after which a feature counts as dead.
        horizon: tokens that the running density looks back on.

    Buffers:
        density: [d_sae] float32, moving average of the share of tokens that a feature fires on, over about
            ``horizon`` tokens; 0 for a dead feature.
        age: [d_sae] int64, training tokens since the feature last fired.
        tokens: [] int64, training tokens seen.
    """

    density: Tensor
    age: Tensor
    tokens: Tensor

    def __init__(self, d_sae: int, dead_after: int = 100_000, horizon: int = 100_000) -> None:
        super().__init__()
        self.dead_after, self.horizon = dead_after, horizon
        self.register_buffer("density", torch.zeros(d_sae, dtype=torch.float32))
        self.register_buffer("age", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, code: Code, world: World = SOLO) -> None:
        """Count one training batch."""
        fired = world.sum(code.firings())
        n = world.count(code.n, self.density.device)
        if n == 0:
            return
        self.tokens += n
        # Until the horizon is full the average is the plain mean, so that it has no memory of its start.
        keep = 1 - n / min(max(int(self.tokens), n), max(self.horizon, n))
        self.density.mul_(keep).add_(fired.to(self.density.dtype), alpha=(1 - keep) / n)
        self.age.add_(n).masked_fill_(fired > 0, 0)
        self.density.masked_fill_(self.dead(), 0)

    def dead(self) -> Tensor:
        """[d_sae] bool: has not fired during the last ``dead_after`` training tokens."""
        return self.age >= self.dead_after

    def dead_share(self) -> float | None:
        """The share of features that are dead; None before there were ``dead_after`` training tokens, for until
        then no feature can have been silent for so long."""
        return float(self.dead().float().mean()) if int(self.tokens) >= self.dead_after else None

    def never_fired(self) -> float | None:
        """The share of features that have not fired on any training token; None before the first."""
        return int((self.age == self.tokens).sum()) / len(self.age) if int(self.tokens) else None
