"""The contract of a scorer, and what it is handed."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Kind
from ..errors import InvalidConfig
from ..files import text_digest


@dataclass(frozen=True)
class Text:
    """What a score belongs to: a document, or one of its contexts.

    Attributes:
        id: of the document, as a capture of the same data names it.
        start: of a context, the place of its first kept token among those of its document, as in a capture;
            None for a whole document.
        label: the user's own number for it.
        document: of a context, the digest of the document's text.
    """

    id: str
    text: str
    start: int | None = None
    label: float | None = None
    document: str = ""

    @property
    def digest(self) -> str:
        """Whether it is still the text that was scored: ``files.text_digest`` of it."""
        return text_digest(self.text)


@dataclass(frozen=True)
class Scored:
    """What came of one text: a value, or the reason why there is none.

    Attributes:
        id, start, digest, document: of the text.
        value: finite; None where scoring failed.
        failure: why it failed, in words that other texts may share, so that they can be counted.
        parts: numbers that the value was made of, by name.
    """

    id: str
    start: int | None
    digest: str
    value: float | None
    failure: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    document: str = ""

    @classmethod
    def of(cls, text: Text, value: float, parts: Mapping[str, float] | None = None) -> Scored:
        """The score of ``text``; a value that is not finite is a failure."""
        if not math.isfinite(value):
            return cls.failed(text, f"the score is {value}")
        return cls(text.id, text.start, text.digest, float(value), None, parts or {}, text.document)

    @classmethod
    def failed(cls, text: Text, reason: str) -> Scored:
        """``text`` without a score."""
        return cls(text.id, text.start, text.digest, None, reason, document=text.document)


def number_in(value: Any) -> float | None:
    """The finite number that a field holds, in digits or as a word of a table of words; else None.

    >>> [number_in(value) for value in (3, "-0.5", "n/a", None, True, float("nan"))]
    [3.0, -0.5, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class Window(Protocol):
    """One context of one text, as ``activations`` cuts them."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """[L] token ids."""

    @property
    def keep(self) -> NDArray[np.bool_]:
        """[L], the tokens that are no special ones."""


class Cutter(Protocol):
    """Makes contexts of texts."""

    def windows(self, documents: Sequence[Any], first: int) -> Sequence[Iterable[Window]]:
        """The contexts of each text; what it reads of one are ``id`` and ``text``."""


class CausalModel(Protocol):
    """A language model, as ``activations.load_model`` loads it."""

    def output(self, inputs: Mapping[str, Tensor], /) -> Tensor:
        """Logits [c, L, vocabulary] for ``input_ids`` and ``attention_mask``, [c, L]."""

    def output_bytes(self, positions: int, /) -> int:
        """Bytes of the logits of so many positions; 0 where that is not known."""

    @property
    def name(self) -> str: ...

    @property
    def causal(self) -> bool:
        """Whether it predicts next tokens."""

    @property
    def device(self) -> torch.device: ...


class LanguageModel(NamedTuple):
    """A model, and what cuts texts into its contexts of at most ``context`` tokens."""

    model: CausalModel
    cutter: Cutter
    context: int


def _no_models(name: str, context: int | None) -> LanguageModel:
    raise InvalidConfig(f"no way to load the model {name!r} was given; build with Tools(language_model=...)")


@dataclass(frozen=True)
class Tools:
    """What only some scorers need of their surroundings.

    Attributes:
        language_model: loads the model of that name for contexts of so many tokens; None leaves the length
            to the model.
        cache: folder where answers that were paid for are kept; None keeps them in memory only.
    """

    language_model: Callable[[str, int | None], LanguageModel] = _no_models
    cache: Path | None = None


class ScorerConfig(Kind, abc.ABC):
    """How to build a scorer."""

    @property
    def label_field(self) -> str | None:
        """Field of the data that ``Text.label`` is read from, if the scorer wants one."""
        return None

    @abc.abstractmethod
    def build(self, tools: Tools) -> Scorer:
        """Raises what hinders the scorer from working at all, before any work: ``MissingExtra``, say."""


class Scorer(abc.ABC):
    """Texts in, numbers out. A text's score depends on no other text.

    Attributes:
        config: what it was built from.
        direction: +1 if a larger score means a more complex text, −1 if it means a simpler one.
    """

    config: ScorerConfig
    direction: int

    def settings(self) -> dict[str, Any]:
        """All that decides the scores, as JSON; no secret."""
        return self.config.model_dump(mode="json", exclude={"kind"})

    @abc.abstractmethod
    def score(self, texts: Iterable[Text]) -> Generator[Scored, None, None]:
        """One result per text, in their order; closing the generator ends the work.

        A text that cannot be scored gives a failure, never a made-up number; what hinders all texts raises.
        """
