"""What a training says of its runs: sums over all steps, a record every few steps, and whether one diverged."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ..clock import Clock
from .step import Run, StepResult


class Tally:
    """Sums over steps that outlive a resume.

    Attributes:
        fvu: of the batch last logged; None where its rows were all equal.
    """

    def __init__(
        self,
        spent: int = 0,
        rows: int = 0,
        tokens: int = 0,
        seconds: float = 0.0,
        fvu: float | None = None,
    ) -> None:
        self.spent, self.rows, self.tokens, self.seconds, self.fvu = spent, rows, tokens, seconds, fvu

    def add(self, result: StepResult, clock: Clock, seconds: float) -> None:
        """Count one step that took so long."""
        code = result.trace.code
        self.tokens, self.seconds = self.tokens + code.n, self.seconds + seconds
        if clock.step >= clock.n_steps - max(clock.n_steps // 10, 1):
            self.spent, self.rows = self.spent + code.nnz, self.rows + code.n

    @property
    def l0(self) -> float | None:
        """Mean features per token over the last tenth of the run; None before it."""
        return self.spent / self.rows if self.rows else None

    @property
    def tokens_per_s(self) -> float | None:
        """Training tokens per second of stepping; None before the first step."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def record(self, run: Run, result: StepResult, clock: Clock) -> dict[str, Any]:
        """What the log says of this step."""
        trace = result.trace
        residual = (trace.x - trace.x_hat).detach()
        spread = (trace.x - trace.x.mean(0)).square().sum()
        self.fvu = float(residual.square().sum() / spread) if spread > 0 else None
        return {
            "step": clock.step,
            "tokens": clock.tokens + trace.code.n,
            "loss": {key: float(value) for key, value in result.losses.items()},
            "fvu": self.fvu,
            "l0": trace.code.nnz / trace.code.n,
            "dead": run.firing.dead_share(),
            "never_fired": run.firing.never_fired(),
            "grad_norm": float(result.grad_norm),
            "lr": result.lr,
            "notes": {key: float(value.detach().float().mean()) for key, value in trace.notes.items()},
            "time": {"at": time.time(), "tokens_per_s": self.tokens_per_s},
        }


def fault_in(record: dict[str, Any]) -> str | None:
    """What shows in a record that its run diverged, in a clause; None if nothing does."""
    step = record["step"]
    for name, value in record["loss"].items():
        if not math.isfinite(value):
            return f"loss '{name}' is {value} at step {step}"
    if not math.isfinite(record["grad_norm"]):
        return f"the gradient's norm is {record['grad_norm']} at step {step}"
    if record["fvu"] is not None and not math.isfinite(record["fvu"]):
        return f"FVU is {record['fvu']} at step {step}"
    return None


def weights_are_finite(run: Run) -> bool:
    """Whether every parameter of a run is a number."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in run.sae.parameters())
