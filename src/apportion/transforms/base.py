"""The contract of a transform."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..code import Undo
from ..config import Kind


class TransformConfig(Kind, abc.ABC):
    """A kind of transform with its settings."""

    @abc.abstractmethod
    def build(self, d_in: int) -> Transform:
        """The transform for activations of that width."""


class Folded(NamedTuple):
    """What remains of a transform when activations come in another unit, and what moves into the weights.

    Attributes:
        config: the transform that remains.
        scale: what the inputs of the dictionary were multiplied by and are no longer.
        shift: [d_in] what was taken off the inputs of the transform and now is not; None for nothing.
    """

    config: TransformConfig
    scale: float
    shift: Tensor | None = None


class Transform(nn.Module, abc.ABC):
    """Brings activations to where the dictionary works.

    A token's result depends on that token alone, so a frozen SAE gives it the same features in any batch.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Undo | None]:
        """``x [n, d_in]`` transformed, and what brings a reconstruction back if a token itself tells that."""

    def restore(self, x_hat: Tensor, undo: Undo | None) -> Tensor:
        """A reconstruction ``x_hat [n, d_in]`` of transformed tokens, brought back to where they came from."""
        return x_hat if undo is None else undo(x_hat)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Learn what it needs from the first batch ``x [n, d_in]``; nothing, mostly."""

    @abc.abstractmethod
    def fold(self, scale: float) -> Folded:
        """For inputs as they are, where this one takes inputs times ``scale``."""

    @property
    @abc.abstractmethod
    def per_token(self) -> bool:
        """True if only a token itself tells how to bring its reconstruction back."""
