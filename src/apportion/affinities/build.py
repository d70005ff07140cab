"""Which implementation answers, and the one dense operation of a step that most of them begin with."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..clock import END, Clock
from ..config import Config
from ..spans import span
from ..trace import Dictionary
from ..workspace import Workspace
from ..world import SOLO, World
from .base import Affinities
from .chunked import ChunkedAffinities
from .dense import DenseAffinities
from .screened import ScreenedAffinities
from .settled import SettledAffinities


class EncoderConfig(Config):
    """How a step comes to know its affinities. All ways give the same code, up to float32 rounding.

    Attributes:
        way: ``whole``, the product in float32, held as one matrix; ``screened``, a bfloat16 product that chooses,
            and float32 for the little that it cannot decide (for ``token_choice``, ``mutual_choice`` and what
            else asks for the largest per row or batch, on processors that multiply bfloat16 faster);
            ``chunked``, the float32 product block by block, for dictionaries whose affinities do not fit in
            memory. Every question that a rule asks then costs a product.
        chunk: features of a block; None for blocks of 67 MB.
    """

    way: Literal["whole", "screened", "chunked"] = "whole"
    chunk: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _chunk_is_used(self) -> EncoderConfig:
        if self.chunk is not None and self.way != "chunked":
            raise ValueError(f"chunk = {self.chunk} goes with way = 'chunked', not '{self.way}'; leave it out")
        return self


WHOLE = EncoderConfig()


def affinities_of(
    x: Tensor,
    dictionary: Dictionary,
    encoder: EncoderConfig = WHOLE,
    *,
    clock: Clock = END,
    world: World = SOLO,
    workspace: Workspace | None = None,
    settle: bool = False,
) -> Affinities:
    """The affinities of ``x [n, d_in]``. Gradients come later, pair by pair.

    Args:
        workspace: lends the large buffers; the answers are then valid until its next use.
        settle: decide in float64 what float32 rounding could change; of the whole product only.
    """
    with torch.no_grad(), span("encode"):
        centred = x - dictionary.b_dec
        if encoder.way == "chunked":
            return ChunkedAffinities(
                x, centred, dictionary, chunk=encoder.chunk, clock=clock, world=world, workspace=workspace
            )
        if encoder.way == "screened":
            return ScreenedAffinities(x, centred, dictionary, clock=clock, world=world, workspace=workspace)
        pre = _product(centred, dictionary, workspace)
    kind = SettledAffinities if settle else DenseAffinities
    return kind(x, centred, pre, dictionary, clock=clock, world=world)


def _product(centred: Tensor, dictionary: Dictionary, workspace: Workspace | None) -> Tensor:
    if torch.is_autocast_enabled(centred.device.type):
        return torch.addmm(dictionary.b_enc, centred, dictionary.weight.T).to(centred.dtype)
    out = workspace.lend("pre", (len(centred), dictionary.d_sae), centred) if workspace else None
    return torch.addmm(dictionary.b_enc, centred, dictionary.weight.T, out=out)
