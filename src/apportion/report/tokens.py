"""The text behind the rows of a store: one table of tokens that everything else points into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..activations.contexts import Contexts, ContextSource
from ..activations.models import LoadedModel, load_tokenizer
from ..activations.source import Source
from ..errors import ApportionError, InvalidInput

Ints = NDArray[np.int64]

NUMBERS = "the tokenizer of {} is not at hand, so tokens are shown by their numbers; give the model"


class Words:
    """Texts of token ids, each kept once and named by a number.

    Args:
        tokenizer: a transformers tokenizer; None for the ids themselves.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, int] = {}
        self.texts: list[str] = []

    def of(self, ids: Sequence[int]) -> list[int]:
        """The number of each id in ``texts``."""
        fresh = [token for token in dict.fromkeys(ids) if token not in self._known]
        for token, text in zip(fresh, self._read(fresh), strict=True):
            self._known[token] = len(self.texts)
            self.texts.append(text)
        return [self._known[token] for token in ids]

    def _read(self, ids: Sequence[int]) -> list[str]:
        if self._tokenizer is None:
            return [f" {token}" for token in ids]
        # Behind another token, for what begins a text may lose its space, and what goes on its mark.
        before: list[int] = self._tokenizer.encode("a", add_special_tokens=False)[:1]
        sequences = [before, *([*before, token] for token in ids)]
        head, *texts = self._tokenizer.batch_decode(sequences, clean_up_tokenization_spaces=False)
        return [text.removeprefix(head) for text in texts]


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The first held-out tokens.

    Attributes:
        words: their texts, and those of other tokens that the page names.
        rows: [n] the text of each token, a number in ``words``.
        begins: [c] row of the first token of each context.
        documents: id, first row and row after the last of each document, in order.
        note: what the reader has to know about the texts; empty if nothing.
    """

    words: Words
    rows: Ints
    begins: Ints
    documents: list[tuple[str, int, int]]
    note: str = ""


def read_tokens(source: Source, most: int, model: LoadedModel | None = None) -> TokenTable:
    """The texts of the first ``most`` rows of the held-out part.

    Args:
        model: gives the tokenizer; without it that of the model which the source names is looked for.

    Raises:
        InvalidInput: the source keeps no contexts, as one of plain tensors or synthetic tokens.
    """
    if not isinstance(source, ContextSource):
        raise InvalidInput(
            f"a {type(source).__name__} keeps no text behind its activations; use a store captured from text"
        )
    name = str(source.describe().get("model", "the model"))
    tokenizer = model.tokenizer if model is not None else _tokenizer(name)
    words = Words(tokenizer)
    ids, begins, documents = _read(source.contexts("evaluate", 32, most), most)
    names: Sequence[str] = getattr(source, "documents", ())
    ends = [first for _, first in documents[1:]] + [len(ids)]
    spans = [
        (names[number] if number < len(names) else str(number), first, end)
        for (number, first), end in zip(documents, ends, strict=True)
    ]
    note = NUMBERS.format(name) if tokenizer is None else ""
    return TokenTable(words, np.array(words.of(ids), np.int64), np.array(begins, np.int64), spans, note)


def _read(batches: Iterable[Contexts], most: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Ids of the rows, first rows of the contexts, and number and first row of the documents."""
    ids: list[int] = []
    begins: list[int] = []
    documents: list[tuple[int, int]] = []
    for batch in batches:
        for tokens, keep, document in zip(batch.input_ids, batch.keep, batch.document.tolist(), strict=True):
            if len(ids) >= most:
                return ids, begins, documents
            begins.append(len(ids))
            if not documents or documents[-1][0] != document:
                documents.append((document, len(ids)))
            ids += torch.masked_select(tokens, keep)[: most - len(ids)].tolist()
    return ids, begins, documents


def _tokenizer(name: str) -> Any:
    try:
        return load_tokenizer(name)
    except ApportionError:
        return None
