"""What the oracle says about some tokens of a batch, and the regression that learns to say it of any token."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ..affinities import Ordered
from ..config import Config
from ..ops.ridge import products, solve_ridge
from ..ops.waterfill import best_k, buy, hull_steps, prefix_errors
from ..trace import Dictionary, Trace
from ..world import World


class LabelsConfig(Config):
    """Where the labels come from, and how a regression learns from them.

    Attributes:
        every: steps from one labelling to the next; the first step is one.
        rows: tokens labelled, per process.
        memory: labelled tokens that the regression looks back on.
        penalty: of the regression, in tokens: a weight is shrunk as by so many that show no relation.
    """

    every: int = Field(default=10, gt=0)
    rows: int = Field(default=256, gt=1)
    memory: int = Field(default=16_384, gt=1)
    penalty: float = Field(default=64.0, gt=0, allow_inf_nan=False)


def some_rows(n: int, rows: int, device: torch.device) -> Tensor:
    """[m] int64, ascending: at most ``rows`` of ``n``, evenly spaced."""
    return torch.arange(0, n, max(-(-n // rows), 1), device=device)


def first_features(trace: Trace, rows: Tensor, most: int) -> Ordered:
    """The first ``most`` features of those rows, by affinity."""
    features = torch.arange(trace.pre.d_sae, device=rows.device)
    return trace.pre.narrow(rows, features).ordered(most)


@torch.no_grad()
def best_counts(trace: Trace, dictionary: Dictionary, rows: Tensor, order: Ordered, k: float) -> Tensor:
    """[m] int64: for each of those rows the best k, at the one price at which their mean is ``k``.

    It is less where no more features help. They are taken in the order given; see ``metrics.Oracle``.
    """
    target = trace.x[rows].float() - dictionary.b_dec.float()
    errors = prefix_errors(target, dictionary.W_dec.float(), order.features, order.values.float()).double()
    return best_k(errors, buy(hull_steps(errors), k * len(rows)).price)


class Regression(nn.Module):
    """A ridge regression that forgets.

    Buffers:
        sums: [width + 2, width + 2] float64, see ``ops.ridge``; older tokens count for less.
        steps: [] int64, seen so far.
    """

    sums: Tensor
    steps: Tensor

    def __init__(self, config: LabelsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("sums", torch.zeros(width + 2, width + 2, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def due(self) -> bool:
        """Whether this step is one to learn from; to be asked once in each."""
        learns = self.learns_next()
        self.steps += 1
        return learns

    def learns_next(self) -> bool:
        """What ``due`` will say."""
        return int(self.steps) % self.config.every == 0

    def add(self, readings: Tensor, target: Tensor, world: World) -> Tensor | None:
        """Take in ``readings [m, width]`` with ``target [m]``; returns the weights [width] of the solution.

        None, and nothing is taken in, where they are not all finite.
        """
        new = world.sum(products(readings, target, 1)[0])
        if not bool(torch.isfinite(new).all()):
            return None
        tokens = float(new[-2, -2])
        self.sums.mul_(1 - tokens / max(self.config.memory, tokens)).add_(new)
        return solve_ridge(self.sums, self.config.penalty).weight

    def fold(self, scale: float, n: int) -> None:
        """The first ``n`` readings are ``scale`` times smaller from now on."""
        units = torch.ones_like(self.sums[0])
        units[:n] = 1 / scale
        self.sums.mul_(units[:, None] * units)
