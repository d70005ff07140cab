"""The user's own labels: any numeric column of the data."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Literal

from pydantic import Field

from .base import Scored, Scorer, ScorerConfig, Text, Tools


class ColumnConfig(ScorerConfig):
    """A numeric field of the data.

    Attributes:
        column: its name.
        direction: "up" if its numbers rise with complexity, "down" if they fall, as human ratings of ease do.
    """

    kind: Literal["column"] = "column"
    column: str = Field(min_length=1)
    direction: Literal["up", "down"] = "up"

    @property
    def label_field(self) -> str:
        return self.column

    def build(self, tools: Tools) -> Column:
        return Column(self)


class Column(Scorer):
    """Hands on the label that a text came with."""

    def __init__(self, config: ColumnConfig) -> None:
        self.config: ColumnConfig = config
        self.direction = {"up": +1, "down": -1}[config.direction]

    def score(self, texts: Iterable[Text]) -> Generator[Scored, None, None]:
        for text in texts:
            if text.label is None:
                yield Scored.failed(text, f"no finite number in the column {self.config.column!r}")
            else:
                yield Scored.of(text, text.label)
