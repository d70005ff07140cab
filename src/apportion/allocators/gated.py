"""Gated: whether a feature fires and how strongly are two readouts of one encoder (arXiv 2404.16014)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..affinities import Affinities, Ordered
from ..clock import END, Clock
from ..code import MatrixCode
from ..ops.gated import gated
from ..trace import Dictionary, Penalty, Trace
from .base import Allocation, Allocator, OneKnob, code_of
from .gate import Gate, GateConfig


class GatedConfig(OneKnob):
    """A gate, and its price.

    Attributes:
        k: mean features per token that the price is to bring about.
        rows: share of a batch's tokens that the gate's own reconstruction is computed on while so many features
            fire that the code is held as a matrix; 1 is exact. Later it is computed on all of them.
    """

    penalised: ClassVar[bool] = True
    kind: Literal["gated"] = "gated"
    rows: float = Field(default=0.25, gt=0, le=1)

    def build(self, *, d_in: int, d_sae: int) -> Gated:
        return Gated(self, d_sae=d_sae)


class Gated(Allocator):
    """z = 1[pi > 0] · ReLU(e^r · W_enc (x - b_dec) + b_mag); the price is of sum ReLU(pi).

    The reconstruction reaches the encoder through the magnitude alone. The gate learns from the price and from
    a reconstruction of its own with ReLU(pi), through a decoder that is held fixed.

    Parameters:
        r: [d_sae] float32, log of the magnitude's gain over the gate's.
        b_mag: [d_sae] float32.
    """

    config: GatedConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False

    def __init__(self, config: GatedConfig, *, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.r = nn.Parameter(torch.zeros(d_sae, dtype=torch.float32))
        self.b_mag = nn.Parameter(torch.zeros(d_sae, dtype=torch.float32))

    @torch.no_grad()
    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        """The magnitude starts as the gate, whatever its bias."""
        self.b_mag.copy_(dictionary.b_enc)

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        pairs = pre.fired(0.0)
        own = (pairs.spread(t) for t in (pre.biases(), self.r.exp(), self.b_mag))
        values, gate = gated(pre.at(pairs), *own)
        code = code_of(pre, pairs, values)
        return Allocation(code, {"gate": gate}, Penalty(gate.sum() / max(pre.n, 1), self.config.k))

    def order(self, pre: Affinities, x: Tensor, k: int) -> Ordered:
        return self.freeze().order(pre, x, k)

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        x, gate = trace.x, trace.code.with_values(trace.notes["gate"])
        if gate.matrix is not None:
            some = torch.arange(max(round(self.config.rows * len(x)), 1), device=x.device) * len(x)
            some = some // max(round(self.config.rows * len(x)), 1)
            x, gate = x[some], MatrixCode(gate.matrix[some])
        return {"gate": (x - dictionary.detach().decode(gate)).square().sum() / max(len(x), 1)}

    def freeze(self) -> Gate:
        frozen = Gate(GateConfig(k=self.config.k), d_sae=len(self.r))
        frozen.gain.copy_(self.r.detach().exp())
        frozen.b_mag.copy_(self.b_mag.detach())
        return frozen

    @torch.no_grad()
    def fold(self, scale: float) -> None:
        self.b_mag.div_(scale)
