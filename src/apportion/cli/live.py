"""Training without a store: the options of a model that runs while SAEs are trained on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..activations import StreamedSource
from ..errors import InvalidConfig
from .data import documents_of, named
from .model import ModelOptions
from .output import shown_here

HELDOUT = "heldout"
"""The folder of the held-out rows in that of the training."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """What is trained on where no store is given."""

    model: str | None = None
    """live: hub id, folder, .gguf file or name of the model, in place of a store; needs --module and --data."""
    data: tuple[str, ...] = ()
    """live: the texts, as for `capture`; they are read as they are needed, in their order."""
    text_field: str = "text"
    """live: field of the text in JSONL or a dataset."""
    streaming: bool = False
    """live: read a data set of the hub as it is needed, without a copy on this machine."""
    context: int = 128
    """live: tokens per forward pass of the model, special tokens included."""
    forward_batch: int = 32
    """live: contexts per forward pass of the model."""
    buffer_rows: int = 65_536
    """live: tokens that are shuffled among themselves; memory holds two of these."""
    heldout_rows: int = 500_000
    """live: tokens that are captured into OUT/heldout, to calibrate and to evaluate on."""
    outliers: float | None = 10.0
    """live: tokens whose norm is above so many times the median take no part; None lets all take part."""
    skip_first: int = 0
    """live: leave out the first so many positions of every context, special tokens included."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """live: whether contexts begin with the token that begins a text: auto (as the tokenizer does), yes, no."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ModelOptions)

    @property
    def asked(self) -> bool:
        """True if there is something to train on besides a store."""
        return self.model is not None or bool(self.data)

    def source(
        self, module: str | None, out: str, heldout: float, device: str, keep_outliers: bool
    ) -> StreamedSource:
        """The stream, once its held-out rows are captured. Raises ``InvalidConfig`` for half of the options."""
        if self.model is None or not self.data or module is None:
            raise InvalidConfig(
                "training without a store needs --model, --module and --data; give all three, or the folder of a "
                "store"
            )
        documents_of(
            self.data, text_field=self.text_field, streaming=self.streaming
        )  # before the model is loaded
        return StreamedSource(
            self.loading.load(self.model, device),
            module,
            lambda: documents_of(self.data, text_field=self.text_field, streaming=self.streaming),
            Path(out) / HELDOUT,
            context=self.context,
            batch_size=self.forward_batch,
            outliers=self.outliers,
            skip_first=self.skip_first,
            bos=self.bos,
            heldout=heldout,
            heldout_rows=self.heldout_rows,
            buffer_rows=self.buffer_rows,
            keep_outliers=keep_outliers,
            data_description={"data": named(self.data), "text_field": self.text_field},
            progress=shown_here(),
        )
