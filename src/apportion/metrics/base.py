"""The contract of a measure, and the sums that several measures share."""

from __future__ import annotations

import abc
import math
import sys
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..affinities import Affinities, Ordered
from ..code import Code
from ..errors import InvalidInput, NonFiniteActivations

Json: TypeAlias = int | float | list[int] | list[float] | None
"""What a result may hold; ``None`` where a number is not defined."""


class Codec(Protocol):
    """What a measurement asks of an SAE: anything that encodes and decodes can be measured."""

    @property
    def d_in(self) -> int: ...

    @property
    def d_sae(self) -> int: ...

    def encode(self, x: Tensor, /) -> Code: ...

    def decode(self, code: Code, /) -> Tensor: ...


def device_of(sae: Codec) -> torch.device:
    """Where ``sae`` runs: its parameters' device, the CPU if it has none."""
    first = next(sae.parameters(), None) if isinstance(sae, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


@dataclass(frozen=True, eq=False)
class MetricBatch:
    """A block of tokens with what a dictionary made of them.

    Attributes:
        x, x_hat: [n, d_in] activations and their reconstructions, any float type.
        code: the code of the n tokens.
        document: [n] int64, the document of each token; ``None`` if unknown.
        order: the first features of each token in the order of its rule; ``None`` if nobody asked.
        pre: the affinities that the code was chosen from; ``None`` if the dictionary shows none.

    Raises:
        InvalidInput: the parts do not describe the same n tokens.
    """

    x: Tensor
    x_hat: Tensor
    code: Code
    document: Tensor | None = None
    order: Ordered | None = None
    pre: Affinities | None = None

    def __post_init__(self) -> None:
        n = len(self.x)
        rows = n if self.document is None else len(self.document)
        ordered = n if self.order is None else len(self.order.features)
        known = n if self.pre is None else self.pre.n
        sizes = {n, self.code.n, rows, ordered, known}
        if self.x.dim() != 2 or self.x.shape != self.x_hat.shape or len(sizes) > 1:
            raise InvalidInput(
                f"x {list(self.x.shape)}, x_hat {list(self.x_hat.shape)}, a code of {self.code.n} tokens, "
                f"{rows} document numbers, the order of {ordered} tokens and affinities of {known} do not "
                "describe the same tokens; pass [n, d_in] twice and n of the others"
            )


class Metric(abc.ABC):
    """Sums over the tokens of an evaluation set, and the numbers that follow from them.

    ``update`` changes nothing but the metric's own sums and ``result`` nothing at all, so it may be asked
    for at any time after the first block.
    """

    @abc.abstractmethod
    def update(self, batch: MetricBatch) -> None:
        """Add a block of tokens."""

    @abc.abstractmethod
    def result(self) -> dict[str, Json]:
        """The numbers over all tokens so far.

        Raises:
            InvalidInput: no tokens yet, or the measure is not defined on them.
        """


def wide(x: Tensor) -> Tensor:
    """``x`` in float64, cut from the graph, where float64 exists."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    return x.detach().to(device, torch.float64)


def without_bias(batch: MetricBatch, b_dec: Tensor) -> Tensor:
    """[n, d_in] what the directions are to sum to: x less the part of x̂ that no feature makes.

    Where tokens were transformed one by one, directions and ``b_dec [d_in]`` count times a token's own gain.
    """
    x, undo = batch.x.to(b_dec.dtype), batch.code.undo
    return x - b_dec if undo is None else x - undo(b_dec.expand_as(x))


def need_tokens(n: int) -> None:
    """Raises ``InvalidInput`` when ``n`` is 0."""
    if n == 0:
        raise InvalidInput("0 tokens were measured, expected at least 1; measure a larger part of the data")


class Moments:
    """Mean, scatter around it and number of rows, in float64, of rows that come in blocks.

    Blocks are merged by their means (Chan, Golub and LeVeque 1983), so that neither a large common mean nor
    one extreme first row costs digits.

    Attributes:
        n: rows so far.
        mean: [d] float64.
        scatter: with ``full`` [d, d], Σ (x − x̄)(x − x̄)ᵀ; else a scalar, Σ ‖x − x̄‖².
    """

    def __init__(self, full: bool = False) -> None:
        self.n = 0
        self.mean = torch.zeros(())
        self.scatter = torch.zeros(())
        self._full = full

    def update(self, x: Tensor) -> None:
        """Add rows ``x [m, d]``, any float type."""
        if len(x) == 0:
            return
        x = wide(x)
        mean = x.mean(0)
        scatter = self._square(x - mean)
        if self.n == 0:
            self.n, self.mean, self.scatter = len(x), mean, scatter
            return
        step, total = mean - self.mean, self.n + len(x)
        self.scatter = self.scatter + scatter + self._square(step[None]) * (self.n * len(x) / total)
        self.mean = self.mean + step * (len(x) / total)
        self.n = total

    def _square(self, x: Tensor) -> Tensor:
        return x.T @ x if self._full else x.square().sum()


def unexplained(error: float, spread: Moments) -> float:
    """``error`` / Σ‖x − x̄‖²: the share of the rows' variance that a sum of squared errors leaves.

    Raises:
        InvalidInput: no rows, or rows that are all equal.
        NonFiniteActivations: one of the sums is NaN or infinite.
    """
    need_tokens(spread.n)
    total = float(spread.scatter)
    if not (math.isfinite(total) and math.isfinite(error)):
        raise NonFiniteActivations(
            f"the variance sums to {total} and the squared error to {error}, both must be finite; "
            "look for NaN or infinite activations or weights"
        )
    # The mean of equal rows may itself be rounded; what that leaves is not variance.
    if total <= spread.n * (16 * sys.float_info.epsilon) ** 2 * float(spread.mean.square().sum()):
        raise InvalidInput(
            f"the {spread.n} measured rows are all equal, so no share of their variance is defined; "
            "measure at least two different rows"
        )
    return error / total
