"""A k that follows a linear probe of the text's complexity (AdaptiveK, arXiv 2508.17320), solved to meet k."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from ..firing import Firing
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import BoundedConfig, Budget, meet, rounded
from .lesson import Lesson, LessonConfig, Recent
from .score_map import MAPS

_HALVINGS = 34
"""Of the offset's interval in training; calibration goes on to the last digit."""


class RidgeConfig(BoundedConfig):
    """A probe and the map from its score to k.

    Attributes:
        map: ``sigmoid`` (published) or ``linear`` in the score, or ``rank``, in its quantile among tokens.
        slope: of sigmoid and line, per unit of the target. Published: 0.6 per point of the judge, of whom one
            standard deviation is a point or two.
        clip: bounds of the score; None for none. Published: 0 and 10.
        lesson: how the probe learns in training; None when it has learned.
    """

    kind: Literal["ridge"] = "ridge"
    map: Literal["sigmoid", "linear", "rank"] = "sigmoid"
    slope: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    clip: tuple[float, float] | None = None
    lesson: LessonConfig | None = LessonConfig()

    @model_validator(mode="after")
    def _clip_ascends(self) -> RidgeConfig:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip = {self.clip} must be a lower and a higher score")
        return self

    @property
    def learns_from_targets(self) -> bool:
        return self.lesson is not None

    def build(self, *, d_in: int, d_sae: int) -> Ridge:
        return Ridge(self, d_in=d_in, d_sae=d_sae)


class Ridge(Budget):
    """k_min + (k_max - k_min) share(place(x · weight + bias) + offset): monotone in the predicted score.

    Every token starts at k. The probe learns as its lesson says; from its solution on, the offset is solved
    over the scores of recent tokens until their mean k, rounded, is k, and again as new ones come.

    Buffers:
        weight: [d_in] float32.
        bias, offset: [] float32.
    """

    config: RidgeConfig
    weight: Tensor
    bias: Tensor
    offset: Tensor

    def __init__(self, config: RidgeConfig, *, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_sae = d_in, d_sae
        low, high = config.bounds
        self.least, self.most = low, min(high, d_sae)
        self.map = MAPS[config.map](config.slope)
        self.lesson = Lesson(config.lesson, d_in) if config.lesson else None
        self.recent = Recent() if config.lesson else None
        self.register_buffer("weight", torch.zeros(d_in, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float32))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))
        self._start()

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Tensor:
        return self._k(self.map.place(self.score(x)) + self.offset.double())

    def score(self, x: Tensor) -> Tensor:
        """[n] float64, the predicted score of ``x [n, d_in]``, clipped."""
        weight, bias = self.probe()
        # In float64: a score near a step of the rank map must not depend on the batch, nor on autocast.
        score = x.double() @ weight + bias
        return score if self.config.clip is None else score.clamp(*self.config.clip)

    def probe(self) -> tuple[Tensor, Tensor]:
        """Weight [d_in] and bias [] as they are, in float64."""
        if self.lesson is None:
            return self.weight.double(), self.bias.double()
        return self.lesson.corrected(self.weight, self.bias)

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        loss = None if self.lesson is None else self.lesson.loss(trace, *self.probe())
        return {} if loss is None else {"probe": loss}

    @torch.no_grad()
    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        if self.lesson is None or self.recent is None:
            return
        solution = self.lesson.gather(trace, world)
        if solution is not None:
            self.weight.copy_(solution[0])
            self.bias.copy_(solution[1])
            self.recent.clear()
        if not int(self.lesson.taught):
            return
        self.lesson.adapt(trace, *self.probe(), world)
        scores = self.recent.add(torch.cat(world.gather(self.score(trace.x))))
        if scores is not None:
            self._meet(scores.double(), self.config.k, _HALVINGS)

    @torch.no_grad()
    def solve(self, survey: Survey, k: float) -> Ridge:
        low, high = self.config.bounds
        changes = {"k": k, "k_min": low, "k_max": high, "lesson": None}
        solved = Ridge(self.config.model_copy(update=changes), d_in=self.d_in, d_sae=self.d_sae)
        solved.to(device=self.weight.device)
        weight, bias = self.probe()
        solved.weight.copy_(weight)
        solved.bias.copy_(bias)
        solved._meet(torch.cat([solved.score(x) for _, x in survey()]), k)
        return solved

    @torch.no_grad()
    def fold(self, scale: float) -> None:
        self.weight.mul_(scale)
        if self.lesson is not None:
            self.lesson.fold(scale)

    def _start(self) -> None:
        """The offset that gives k to the score 0."""
        share = (self.config.k - self.least) / (self.most - self.least) if self.most > self.least else 0.5
        low, high = -60.0, 60.0
        for _ in range(80):
            middle = (low + high) / 2
            below = float(self.map.share(torch.tensor(middle, dtype=torch.float64))) < share
            low, high = (middle, high) if below else (low, middle)
        self.offset.fill_(high)

    def _k(self, place: Tensor) -> Tensor:
        return self.least + (self.most - self.least) * self.map.share(place)

    def _meet(self, scores: Tensor, k: float, halvings: int = 80) -> None:
        """Fit the map and the offset to ``scores [n]``, so that their mean k is ``k``."""
        self.map.fit(scores)
        place = self.map.place(scores)
        reach = float(place.abs().max()) + 40.0  # far enough on either side for every token to be at its bound
        if not math.isfinite(reach):
            return  # the training is diverging, and says so itself
        found = meet(k, lambda b: rounded(self._k(place + b), self.d_sae), -reach, reach, halvings)
        self.offset.fill_(found)
