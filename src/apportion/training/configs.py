"""Settings of a run (one SAE) and of the stream that runs share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..affinities import WHOLE, EncoderConfig
from ..config import Config, Open
from ..objectives import AuxKConfig, ObjectiveConfig, ReconstructionConfig
from ..sae import SAEConfig
from ..schedules import Schedule, WarmupDecay

Beta = Annotated[float, Field(ge=0, lt=1)]
OptimizerName = Literal["adam", "adafactor"]


class RunConfig(Config):
    """How one SAE is trained.

    Attributes:
        sae: shape, rule and budget.
        objectives: losses besides the rule's own terms.
        lr: learning rate over time; the default suits runs of some hundred steps, long ones want less.
        optimizer: ``adafactor`` keeps the second moments of a matrix as one number per row and one per column,
            and no first moments: hardly any memory. ``lr`` means the same; docs/speed.md says what it costs.
        betas, eps: of Adam; ``adafactor`` has none.
        clip: largest norm of the dictionary's gradient, and of that of the rule's own parameters.
        dead_after: training tokens without firing after which a feature is dead.
        seed: of the initial weights and of whatever the rule draws.
        precision: of the encoder's product; parameters and everything else stay float32.
        encoder: how a step computes its affinities; the code is the same, time and memory are not.
        b_enc: where the encoder's biases start, for activations of norm near sqrt(d_in), as scaled ones have.
    """

    sae: SAEConfig
    objectives: tuple[Open[ObjectiveConfig], ...] = (ReconstructionConfig(), AuxKConfig())
    lr: Open[Schedule] = WarmupDecay(peak=3e-3)
    optimizer: OptimizerName = "adam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    clip: float = Field(default=1.0, gt=0)
    dead_after: int = Field(default=100_000, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["float32", "bf16"] = "float32"
    encoder: EncoderConfig = WHOLE
    b_enc: float = Field(default=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_way(self) -> RunConfig:
        if self.precision == "bf16" and self.encoder.way != "whole":
            raise ValueError(
                f"precision = 'bf16' goes with the whole product, not with encoder.way = '{self.encoder.way}'; "
                "leave one of them out"
            )
        return self


class TrainConfig(Config):
    """The stream, and how training on it ends.

    Attributes:
        n_tokens: training tokens; whole batches of them are used.
        batch_size: tokens per step.
        seed: of the order of the rows. Runs with one seed see the same batches.
        log_every: steps between log records; None for about 200 records a run.
        calibrate_tokens: held-out tokens that inference rules are fitted on; None for all.
    """

    n_tokens: int = Field(default=1_000_000, gt=0)
    batch_size: int = Field(default=2048, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    log_every: int | None = Field(default=None, gt=0)
    calibrate_tokens: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_step(self) -> TrainConfig:
        if self.n_tokens < self.batch_size:
            raise ValueError(
                f"n_tokens = {self.n_tokens} is less than one batch of {self.batch_size}; "
                "raise it or lower batch_size"
            )
        return self

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.n_tokens // self.batch_size

    @property
    def record_every(self) -> int:
        """Steps between log records."""
        return self.log_every or max(self.n_steps // 200, 1)
