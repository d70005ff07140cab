"""The contract of an allocator."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..affinities import FOLDS, Affinities, Everything, Ordered, Pairs, Survey
from ..budgets.base import Budget, rounded
from ..clock import END, Clock
from ..code import Code, MatrixCode
from ..config import Kind
from ..firing import Firing
from ..ops.first_features import first_features
from ..trace import Dictionary, Penalty, Trace
from ..world import SOLO, World
from .unseen import Spent, Unseen

_C = TypeVar("_C", bound="AllocatorConfig")


class AllocatorConfig(Kind, abc.ABC):
    """How to build an allocator. The one knob is ``k``, the mean number of features per token.

    Class attributes:
        inference_only: what other rules freeze into; not offered for training by name.
        penalised: held to k by a price, so that an ``Allocation`` has a penalty and an objective must price it.
    """

    inference_only: ClassVar[bool] = False
    penalised: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def mean_k(self) -> float:
        """Mean features per token that the rule promises to meet."""

    @property
    def learns_from_targets(self) -> bool:
        """Whether training needs the numbers that come with the tokens (``Batch.target``)."""
        return False

    @classmethod
    @abc.abstractmethod
    def for_k(cls: type[_C], k: float) -> _C:
        """The config that gives this rule the budget ``k`` and leaves the rest at its defaults."""

    def check(self, n_steps: int, batch_size: int, d_sae: int) -> None:
        """Raise ``InvalidConfig`` if the rule cannot be trained so; asked before a training begins."""

    @abc.abstractmethod
    def build(self, *, d_in: int, d_sae: int) -> Allocator: ...


class OneKnob(AllocatorConfig):
    """The config of a rule whose budget is its field ``k``, any positive number."""

    k: float = Field(gt=0)

    @property
    def mean_k(self) -> float:
        return self.k

    @classmethod
    def for_k(cls: type[_C], k: float) -> _C:
        kind = cls.model_fields["kind"].default
        return cls.parse({"k": k}, kind)


class Allocation(NamedTuple):
    """The code, and what the rule has to say about it: named tensors for the log, for its own terms, and, under
    ``k`` ([n], real), what each token was allotted if the rule allots by token. A rule that is held to its k by
    a price says what it pays; an objective sets the price."""

    code: Code
    notes: Mapping[str, Tensor] = {}
    penalty: Penalty | None = None


@dataclass(frozen=True)
class Calibration:
    """What calibrating on held-out tokens came to.

    Attributes:
        allocator: the calibrated rule.
        k: the budget asked for.
        l0: what the rule gives on the calibration tokens, decided as inference decides.
        tokens: how many there were.
        short: how many of them have fewer positive affinities than they were allotted.
        lift: by how much the encoder's biases were raised for it.
        unseen: what it gives on tokens that it was not fitted on; None where nothing was fitted, or too few
            tokens to hold some out.
        extra: what else the rule wants kept in the metadata.
    """

    allocator: Allocator
    k: float
    l0: float
    tokens: int
    short: int
    lift: float = 0.0
    unseen: Unseen | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Allocator(nn.Module, abc.ABC):
    """Affinities in, code out.

    ``forward`` is pure: it writes nothing and draws no random numbers that it does not take from torch's
    generator. ``observe`` is the only writer, called once per training step, into buffers, so that a checkpoint
    holds all there is. Numbers that depend on time are schedules of ``clock``.

    Class attributes:
        couples_rows: a token's code depends on the rest of its batch.
        hard_budget: a training batch never spends more than it is allotted.
    """

    couples_rows: ClassVar[bool]
    hard_budget: ClassVar[bool]
    config: AllocatorConfig

    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Start from the dictionary as it starts; random numbers come from ``generator``."""

    @abc.abstractmethod
    def forward(self, pre: Affinities, x: Tensor, clock: Clock = END) -> Allocation:
        """Allocate. ``x [n, d_in]`` is the scaled input."""

    def order(self, pre: Affinities, x: Tensor, k: int) -> Ordered:
        """Each token's first ``k`` features in this rule's order, of which its frozen form chooses a prefix."""
        return pre.ordered(k)

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        """Losses, already weighted, that this rule cannot train without."""
        return {}

    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        """Learn from a finished training step, into buffers."""

    def revisits(self, clock: Clock) -> bool:
        """Whether ``observe`` asks the affinities of the step that ``clock`` tells.

        The weights have moved by then. Where affinities are not held in whole, answers of before that cost a
        copy of the encoder's weights, which only rules that say so here are given.
        """
        return False

    @abc.abstractmethod
    def freeze(self) -> Allocator:
        """The inference rule as last known: a new module, final, that couples no rows."""

    def cut(self, n: int, *, d_in: int) -> Allocator:
        """The same rule over the first ``n`` features: a new module that shares nothing.

        A frozen one chooses what this one would if no token wanted any of the others. Tensors with an entry per
        feature keep their first ``n``; a rule that needs more than that says so here.
        """
        other = self.config.build(d_in=d_in, d_sae=n)
        other.load_state_dict(first_features(self.state_dict(), other.state_dict()), assign=True)
        return other

    def calibrate(self, survey: Survey, k: float) -> Calibration:
        """A frozen rule fitted to spend ``k`` per token on the survey; this one only measures what it spends."""
        return measured(self, survey, k)

    def lowered(self, most: float) -> tuple[Allocator, float] | None:
        """The rule that chooses the same when all pre-activations are lower, and by how much: at most ``most``.

        ``calibrate.fit`` raises all biases where positive affinities are a few too few for k, fits the rule to
        that, and asks it here how much was not needed. None: raising them is not how this rule comes to k.
        """
        return None

    def fold(self, scale: float) -> None:
        """Take over the input scale: from now on inputs, and so affinities, are ``scale`` times smaller."""

    def __call__(self, *args: Any, **kwargs: Any) -> Allocation:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]


class Allotting(Allocator):
    """A rule that asks a budget for each token's k, and passes on to it what it is told itself."""

    budget: Budget

    def initialise(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        self.budget.initialise(dictionary, generator)

    def terms(self, trace: Trace, dictionary: Dictionary) -> dict[str, Tensor]:
        return self.budget.terms(trace, dictionary)

    def observe(self, trace: Trace, dictionary: Dictionary, firing: Firing, world: World = SOLO) -> None:
        self.budget.observe(trace, dictionary, firing, world)

    def revisits(self, clock: Clock) -> bool:
        return self.budget.revisits(clock)

    def fold(self, scale: float) -> None:
        self.budget.fold(scale)

    def cut(self, n: int, *, d_in: int) -> Allotting:
        budget = self.budget.cut(n, d_in=d_in)
        other = self.config.model_copy(update={"budget": budget.config}).build(d_in=d_in, d_sae=n)
        assert isinstance(other, Allotting)
        other.load_state_dict(first_features(self.state_dict(), other.state_dict()), assign=True)
        other.budget = budget
        return other


def code_of(pre: Affinities, pairs: Pairs | Everything, values: Tensor) -> Code:
    """The code with ``values`` at the pairs, in the shape of ``pre.at(pairs)``."""
    if isinstance(pairs, Everything):
        return MatrixCode(values)
    return Code.from_pairs(pairs.rows, pairs.features, values, pre.n, pre.d_sae)


def code_at(pre: Affinities, pairs: Pairs) -> Code:
    """The code whose values are the affinities at chosen pairs, with their sparse gradient."""
    return Code.from_pairs(pairs.rows, pairs.features, pre.at(pairs), pre.n, pre.d_sae)


@torch.no_grad()
def measured(
    allocator: Allocator, survey: Callable[[], Iterator[tuple[Affinities, Tensor]]], k: float
) -> Calibration:
    """What ``allocator``, as it is, spends on the survey."""
    spent = tokens = short = 0
    for pre, x in survey():
        code, notes, _ = allocator(pre, x)
        counts = code.counts()
        tokens, spent = tokens + pre.n, spent + int(counts.sum())
        allotted = rounded(notes["k"], pre.d_sae) if "k" in notes else k
        # A token that got fewer than it was allotted was short only if it has no positive affinity left.
        poor = (counts < allotted).nonzero().squeeze(1)
        if len(poor):
            everything = torch.bincount(pre.above(0.0).rows, minlength=pre.n)
            short += int((everything[poor] <= counts[poor]).sum())
    return Calibration(allocator, k, spent / max(tokens, 1), tokens, short)


def cross_fitted(rule: Allocator, survey: Survey, k: float) -> Calibration:
    """``rule.calibrate``, and what a rule that says no more than that spends on tokens that it was not fitted on.

    Half of the folds are then fitted on without the others, and the other way round.
    """
    whole = rule.calibrate(survey, k)
    if whole.unseen is not None or _same(rule, whole.allocator):
        return whole
    halves = frozenset(range(0, FOLDS, 2)), frozenset(range(1, FOLDS, 2))
    parts = [survey.restricted(half) for half in halves]
    if any(all(pre.n == 0 for pre, _ in part()) for part in parts):
        return whole
    spent = Spent()
    for seen, held in (parts, parts[::-1]):
        fitted = rule.calibrate(seen, k).allocator
        for part in held.parts():
            spent.add(part.unit, fitted(part.pre, part.x).code.counts())
    return replace(whole, unseen=spent.unseen(2))


def _same(one: Allocator, other: Allocator) -> bool:
    """Whether two rules hold the same numbers, so that nothing was fitted."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in mine.items())
