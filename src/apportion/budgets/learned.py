"""A k that each token's activation decides, learned with the dictionary (SoftSAE, arXiv 2605.06610)."""

from __future__ import annotations

import abc
import copy
import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..affinities import Affinities, Survey
from ..clock import END, Clock
from ..config import Open
from ..errors import InvalidConfig, InvalidInput
from ..firing import Firing
from ..ops.first_features import first_features
from ..ops.relu_readout import relu_readout
from ..schedules import Linear, Schedule
from ..trace import Dictionary, Trace
from ..world import SOLO, World
from .base import Budget, BudgetConfig, meet, rounded


class LearnedConfig(BudgetConfig):
    """An estimator of k, and the loss that holds its mean at k.

    Attributes:
        k: mean features per token, at least 1: no token gets less.
        estimator: what k is read from. ``shared``: the encoder's own affinities, detached, d_sae weights;
            ``linear``: the activation, d_in weights; ``own``: a ReLU layer of its own, d_in x d_sae weights, as
            published.
        units: units of the layer of ``own``; None for d_sae.
        k_max: largest k; None for 2 k.
        relaxed: how far the loss's upper side lies from k at first, as a share of the way to d_in.
        weight: coefficient of the loss; None for d_in / k, the squared length of an activation shared by k
            features, so that no feature's gain outbids it. Published: 1.
        sharpness: of its softplus.
        lower: also hold the mean up; the published loss only holds it down.
    """

    kind: Literal["learned"] = "learned"
    k: float = Field(ge=1, allow_inf_nan=False)
    estimator: Literal["shared", "linear", "own"] = "shared"
    units: int | None = Field(default=None, gt=0)
    k_max: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    relaxed: Open[Schedule] = Linear(start=1.0, end=0.0, until=0.05)
    weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    sharpness: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    lower: bool = True

    @model_validator(mode="after")
    def _room_above(self) -> LearnedConfig:
        if self.k_max is not None and self.k_max <= self.k:
            raise ValueError(f"k_max = {self.k_max:g} must be above the mean k = {self.k:g}")
        return self

    @property
    def mean_k(self) -> float:
        return self.k

    def most(self, d_sae: int) -> float:
        """The largest k; never more than there are features."""
        return min(2 * self.k if self.k_max is None else self.k_max, d_sae)

    def check(self, d_sae: int) -> None:
        if self.k >= self.most(d_sae):
            raise InvalidConfig(f"k = {self.k:g} leaves a learned k no room below d_sae = {d_sae}; lower k")

    def build(self, *, d_in: int, d_sae: int) -> Learned:
        return Learned(self, d_in=d_in, d_sae=d_sae)


class Learned(Budget):
    """k_max sigmoid(score(x) + offset), at least 1; every token starts at k.

    Trained by whatever gradient the rule gives k, and by
    ``weight (softplus(mean k - target) + softplus(k - mean k))``. The target comes down from d_in to k: early on
    the mean may rise, never fall.

    Parameters:
        offset: [] float32.
        scorer: what turns a token into its score.
    """

    config: LearnedConfig

    def __init__(self, config: LearnedConfig, *, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_sae, self.most = d_in, d_sae, config.most(d_sae)
        self.scorer = _SCORERS[config.estimator](d_in, d_sae, config.units or d_sae)
        config.check(d_sae)
        share = config.k / self.most
        self.offset = nn.Parameter(torch.tensor(math.log(share / (1 - share)), dtype=torch.float32))

    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        self.scorer.initialise(dictionary, generator)

    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Tensor:
        return self._bounded(self.scorer(pre, x) + self.offset.to(x.dtype))

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        k, beta = trace.notes["k"].mean(), self.config.sharpness
        target = self.config.k + self.config.relaxed(trace.clock) * max(self.d_in - self.config.k, 0.0)
        loss = F.softplus(k - target, beta=beta)
        if self.config.lower:
            loss = loss + F.softplus(self.config.k - k, beta=beta)
        weight = self.d_in / self.config.k if self.config.weight is None else self.config.weight
        return {"budget": weight * loss}

    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        self.scorer.observe(trace, world)

    def revisits(self, clock: Clock) -> bool:
        return self.scorer.revisits

    @torch.no_grad()
    def solve(self, survey: Survey, k: float) -> Learned:
        if not 1 <= k < self.most:
            raise InvalidInput(
                f"k = {k:g} is not within this budget's bounds, 1 to {self.most:g}; choose another"
            )
        parts = [self.scorer(pre, x).double() for pre, x in survey()]
        if not sum(len(part) for part in parts):
            raise InvalidInput("there are no tokens to calibrate on; hold out more documents")
        score, solved = torch.cat(parts), copy.deepcopy(self)
        # Far enough on either side for every token to be at its bound.
        reach = float(score.abs().max()) + 40.0
        most = math.ceil(self.most)
        solved.offset.fill_(meet(k, lambda offset: rounded(self._bounded(score + offset), most), -reach, reach))
        solved.config = self.config.model_copy(update={"k": k, "k_max": self.most})
        return solved

    @torch.no_grad()
    def cut(self, n: int, *, d_in: int) -> Learned:
        config = self.config.model_copy(update={"k_max": self.most, "units": self.config.units or self.d_sae})
        other = config.build(d_in=d_in, d_sae=n)
        other.load_state_dict(first_features(self.state_dict(), other.state_dict()), assign=True)
        other.offset.add_(other.scorer.follow(self.scorer))
        return other

    @torch.no_grad()
    def fold(self, scale: float) -> None:
        self.scorer.fold(scale)

    def _bounded(self, logit: Tensor) -> Tensor:
        return (self.most * torch.sigmoid(logit)).clamp(min=1.0)


class Scorer(nn.Module, abc.ABC):
    """A token's score, [n], next to zero at first.

    Scores are sums over n weights times reach / sqrt(n). Adam moves every weight by about the learning rate, all
    of them together in one direction when that helps: without the root one step could carry every k from one
    bound to the other. How the reach was chosen stands in docs/soft_sae.md.

    Class attributes:
        revisits: ``observe`` asks the affinities.
    """

    reach: ClassVar[float] = 8.0
    revisits: ClassVar[bool] = False

    def scaled(self, total: Tensor, n: int) -> Tensor:
        """A sum over ``n`` weights as a score."""
        return total * (self.reach / math.sqrt(n))

    @abc.abstractmethod
    def forward(self, pre: Affinities, x: Tensor) -> Tensor: ...

    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Start from the dictionary as it starts."""

    def observe(self, trace: Trace, world: World) -> None:
        """See ``Budget.observe``."""

    def follow(self, whole: Scorer) -> Tensor | float:
        """Having the first features of ``whole``, score as it does; returns what the others, unwanted, add."""
        return 0.0

    @abc.abstractmethod
    def fold(self, scale: float) -> None:
        """See ``Budget.fold``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]


class Shared(Scorer):
    """The encoder's affinities, less their running mean, times ``weight [d_sae]``.

    The encoder gets no gradient from it. Affinities are positive: not centred, most of what moves the weights
    would move all tokens alike, which is the offset's affair.

    Buffers:
        mean: [d_sae] float32, running mean affinity of every feature.
        seen: [] int64, steps that it has seen.
    """

    revisits: ClassVar[bool] = True
    mean: Tensor
    seen: Tensor

    def __init__(self, d_in: int, d_sae: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_sae, dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(d_sae, dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, pre: Affinities, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        return self.scaled(pre.weigh(weight) - weight @ self.mean.to(x.dtype), len(weight))

    @torch.no_grad()
    def observe(self, trace: Trace, world: World) -> None:
        means = world.sum(trace.pre.means(every=8)) / world.size
        self.mean.lerp_(means.to(self.mean), 0.1 if int(self.seen) else 1.0)
        self.seen += 1

    def follow(self, whole: Scorer) -> Tensor:
        assert isinstance(whole, Shared)
        n, n_whole = len(self.weight), len(whole.weight)
        self.weight.mul_(math.sqrt(n / n_whole))  # what a sum is divided by has become smaller
        return -self.scaled(whole.weight[n:] @ whole.mean[n:], n_whole)

    def fold(self, scale: float) -> None:
        self.weight.mul_(scale)
        self.mean.div_(scale)


class Direct(Scorer):
    """The activation times ``weight [d_in]``."""

    def __init__(self, d_in: int, d_sae: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_in, dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor) -> Tensor:
        return self.scaled(x @ self.weight.to(x.dtype), len(self.weight))

    def fold(self, scale: float) -> None:
        self.weight.mul_(scale)


class Own(Scorer):
    """ReLU(weight x + bias) times ``readout``, as published: ``weight [units, d_in]`` starts at the encoder's.

    The published layer reads x - b_dec; here the bias starts at b_enc - W_enc b_dec and goes its own way.
    """

    reach: ClassVar[float] = 2.0  # what it reads moves as well

    def __init__(self, d_in: int, d_sae: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(units, d_in, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(units, dtype=torch.float32))
        self.readout = nn.Parameter(torch.zeros(units, dtype=torch.float32))

    def forward(self, pre: Affinities, x: Tensor) -> Tensor:
        return self.scaled(relu_readout(x, self.weight, self.bias, self.readout), len(self.readout))

    @torch.no_grad()
    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        self.weight.copy_(dictionary.weight)
        self.bias.copy_(dictionary.b_enc - dictionary.weight @ dictionary.b_dec)
        # Zero would cut the layer behind it off; this moves no k by a hundredth.
        self.readout.copy_(1e-4 * torch.randn(len(self.readout), generator=generator))

    def fold(self, scale: float) -> None:
        self.weight.mul_(scale)


_SCORERS: dict[str, type[Scorer]] = {"shared": Shared, "linear": Direct, "own": Own}
