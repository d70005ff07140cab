"""Readability formulas, as textstat computes them for English."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Generator, Iterable
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from ..errors import MissingExtra, nearest
from .base import Scored, Scorer, ScorerConfig, Text, Tools


class Formula(NamedTuple):
    """What a formula's numbers mean, and the least text that it is defined for."""

    direction: int
    words: int = 1
    sentences: int = 1


FORMULAS = {
    "automated_readability_index": Formula(+1),
    "coleman_liau_index": Formula(+1),
    "dale_chall_readability_score": Formula(+1),
    "flesch_kincaid_grade": Formula(+1),
    "flesch_reading_ease": Formula(-1),
    "gunning_fog": Formula(+1),
    "linsear_write_formula": Formula(+1, words=100),  # counted on a sample of 100 words
    "lix": Formula(+1),
    "mcalpine_eflaw": Formula(+1),
    "rix": Formula(+1),
    "smog_index": Formula(+1, sentences=3),  # made for thirty; below three its root is mostly noise
    "spache_readability": Formula(+1),
}
"""By textstat's names. All but Flesch's reading ease rise with complexity."""


class ReadabilityConfig(ScorerConfig):
    """A formula over counts of sentences, words, syllables and familiar words.

    Attributes:
        formula: a key of ``FORMULAS``.
        min_words: a text with fewer words is left out, as is one that is too short for the formula itself.
    """

    kind: Literal["readability"] = "readability"
    formula: str = "flesch_kincaid_grade"
    min_words: int = Field(default=10, ge=1)

    @field_validator("formula")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in FORMULAS:
            raise ValueError(f"unknown formula {value!r}; nearest: {nearest(value, FORMULAS)}")
        return value

    def build(self, tools: Tools) -> Readability:
        return Readability(self)


class Readability(Scorer):
    """One formula. Raises ``MissingExtra`` without textstat or its dictionary of syllables."""

    def __init__(self, config: ReadabilityConfig) -> None:
        self.config: ReadabilityConfig = config
        self._formula = FORMULAS[config.formula]
        self.direction = self._formula.direction
        self._textstat = _load()

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"textstat": importlib.metadata.version("textstat")}

    def score(self, texts: Iterable[Text]) -> Generator[Scored, None, None]:
        words = max(self.config.min_words, self._formula.words)
        apply = getattr(self._textstat, self.config.formula)
        for text in texts:
            if self._textstat.lexicon_count(text.text) < words:
                yield Scored.failed(text, f"fewer than {words} words")
            elif self._textstat.sentence_count(text.text) < self._formula.sentences:
                yield Scored.failed(text, f"fewer than {self._formula.sentences} sentences")
            else:
                yield Scored.of(text, float(apply(text.text)))


def _load() -> Any:
    """textstat with a language setting of its own, so that nobody else's changes."""
    try:
        from textstat.textstat import textstatistics
    except ImportError:
        raise MissingExtra("readability formulas need textstat; install apportion[score]") from None
    statistics = textstatistics()
    try:
        statistics.syllable_count("readability")
    except LookupError:  # later releases fetch the dictionary of syllables from the network when first used
        version = importlib.metadata.version("textstat")
        raise MissingExtra(
            f"textstat {version} has no dictionary of syllables here and could not fetch one; install "
            "apportion[score], whose release brings its own"
        ) from None
    return statistics
