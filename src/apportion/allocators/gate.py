"""A gate with one threshold for all features: the inference rule of Gated."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..affinities import Affinities, Ordered, Pairs, Survey
from ..clock import END, Clock
from .base import Allocation, Allocator, Calibration, OneKnob, code_of, measured
from .one_cut import Gauge, fit_cut


class GateConfig(OneKnob):
    """A threshold on the gate, fitted to give ``k`` features per token."""

    inference_only: ClassVar[bool] = True
    kind: Literal["gate"] = "gate"

    def build(self, *, d_in: int, d_sae: int) -> Gate:
        return Gate(self, d_sae=d_sae)


class Gate(Allocator):
    """z = gain · (pi - b_enc) + b_mag where pi > theta and z > 0.

    Buffers:
        theta: [] float32, at least 0.
        gain: [d_sae] float32, above 0.
        b_mag: [d_sae] float32.
    """

    config: GateConfig
    couples_rows: ClassVar[bool] = False
    hard_budget: ClassVar[bool] = False
    theta: Tensor
    gain: Tensor
    b_mag: Tensor

    def __init__(self, config: GateConfig, *, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("theta", torch.zeros((), dtype=torch.float32))
        self.register_buffer("gain", torch.ones(d_sae, dtype=torch.float32))
        self.register_buffer("b_mag", torch.zeros(d_sae, dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        pairs = pre.above(torch.maximum(self.theta, self.least(pre)))
        excess = pre.at(pairs) - pairs.spread(self.least(pre))
        # Above zero, though float32 may round it away: which features fire was decided more exactly.
        values = (pairs.spread(self.gain) * excess).clamp(min=torch.finfo(excess.dtype).tiny)
        return Allocation(code_of(pre, pairs, values))

    def order(self, pre: Affinities, x: Tensor, k: int) -> Ordered:
        least = self.least(pre)
        features, gates = pre.ordered(k, least=least)
        values = self.gain[features] * (gates - least[features])
        return Ordered(features, values.masked_fill_(gates <= 0, 0.0))

    def least(self, pre: Affinities) -> Tensor:
        """[d_sae]: the gate at which a feature's magnitude is zero."""
        return pre.biases().detach() - self.b_mag / self.gain

    def freeze(self) -> Gate:
        frozen = Gate(self.config, d_sae=len(self.gain))
        frozen.load_state_dict(self.state_dict())
        return frozen

    @torch.no_grad()
    def calibrate(self, survey: Survey, k: float) -> Calibration:
        """The threshold that exactly round(k N) gates of the survey's N tokens exceed (ties apart)."""
        fitted = Gate(GateConfig(k=k), d_sae=len(self.gain)).to(self.gain.device)
        fitted.load_state_dict(self.state_dict())
        cut = fit_cut(survey, k, Gauge(self._largest, least=self.least))
        fitted.theta.fill_(cut.value)
        if cut.value > 0:
            return Calibration(fitted, k, cut.fitted / cut.tokens, cut.tokens, short=0, unseen=cut.unseen)
        return measured(fitted, survey, k)

    def lowered(self, most: float) -> tuple[Gate, float]:
        """Gates open, and magnitudes, which count from the bias, stay."""
        other, by = self.freeze(), min(float(self.theta), most)
        other.theta -= by
        return other, by

    def fold(self, scale: float) -> None:
        self.theta /= scale
        self.b_mag /= scale

    def _largest(self, pre: Affinities, m: int) -> Pairs:
        """The pairs of the largest gates of features whose magnitude is above zero."""
        pairs = pre.above(self.least(pre))
        gates = pre.at(pairs)
        chosen = gates.topk(min(m, len(gates))).indices
        return Pairs(pairs.rows[chosen], pairs.features[chosen])
