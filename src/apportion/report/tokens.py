"""The text behind the rows of a store: one table of tokens that everything else points into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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
    """Texts of tokens, each kept once and named by a number.

    Args:
        tokenizer: a transformers tokenizer; None for the ids themselves.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self.texts: list[str] = []

    def of(self, ids: Sequence[int]) -> list[int]:
        """The number in ``texts`` of each id as a word by itself; bytes that are no character are spelled out."""
        pairs = zip(ids, self._behind(ids), strict=True)
        return self._numbered([_spelled(self._tokenizer, token, text) for token, text in pairs])

    def running(self, ids: Sequence[int]) -> list[int]:
        """The number in ``texts`` of each id of a text, in order: together they are the text.

        A character belongs to the token that completes it, so a token of its first bytes has an empty text.
        """
        if self._tokenizer is None or not ids:
            return self.of(ids)
        first, text = self._decoded([ids[:1], ids])
        found = [first, *self._behind(ids[1:])]
        return self._numbered(found if "".join(found) == text else self._completed(ids))

    def _numbered(self, texts: Sequence[str]) -> list[int]:
        for text in dict.fromkeys(texts):
            if text not in self._numbers:
                self._numbers[text] = len(self.texts)
                self.texts.append(text)
        return [self._numbers[text] for text in texts]

    def _behind(self, ids: Sequence[int]) -> list[str]:
        """The text of each token behind another, where it keeps the space that it may begin with."""
        if self._tokenizer is None:
            return [f" {token}" for token in ids]
        if fresh := [token for token in dict.fromkeys(ids) if token not in self._alone]:
            before: list[int] = self._tokenizer.encode("a", add_special_tokens=False)[:1]
            head, *texts = self._decoded([before, *([*before, token] for token in fresh)])
            self._alone |= {token: text.removeprefix(head) for token, text in zip(fresh, texts, strict=True)}
        return [self._alone[token] for token in ids]

    def _completed(self, ids: Sequence[int]) -> list[str]:
        """The part of the text that each token brings to its end."""
        texts: list[str] = []
        while len(texts) < len(ids):
            at = len(texts)
            before, some = list(ids[max(at - 1, 0) : at]), ids[at : at + _AT_ONCE + _AHEAD]
            head, *grown = self._decoded([before, *([*before, *some[:n]] for n in range(1, len(some) + 1))])
            whole = grown[-1]
            ends = [_complete(text, later, whole) for text, later in pairwise([*grown, ""])]
            taken = len(some)
            if at + taken < len(ids):
                done = [n for n in range(1, _AT_ONCE + 1) if ends[n - 1] == len(grown[n - 1])]
                taken = done[-1] if done else _AT_ONCE
            last = len(head) if before else 0
            for end in ends[:taken]:
                texts.append(whole[last:end])
                last = max(last, end)
        return texts

    def _decoded(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        found: list[str] = self._tokenizer.batch_decode(
            [list(ids) for ids in sequences], clean_up_tokenization_spaces=False
        )
        return found


def _spelled(tokenizer: Any, token: int, text: str) -> str:
    """``text``, the bytes in it that are no character spelled out, if the tokenizer's alphabet is of bytes."""
    if tokenizer is None or _REPLACEMENT not in text:
        return text
    letters = tokenizer.convert_ids_to_tokens(token)
    if any(letter not in _BYTES for letter in letters):
        return text
    return bytes(_BYTES[letter] for letter in letters).decode(errors="backslashreplace")


def _complete(text: str, later: str, whole: str) -> int:
    """How many letters of ``text``, which begins ``whole``, are complete.

    What more tokens change was not: an unfinished character reads as a replacement. One that is meant stays, but
    not before all of its bytes are there: until then ``later``, of one token more, is the same.
    """
    if whole.startswith(text):
        return len(text) - (text == later and text.endswith(_REPLACEMENT))
    return next(at for at, letter in enumerate(text) if whole[at : at + 1] != letter)


def _byte_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's and its heirs')."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_alphabet()
_REPLACEMENT = "\ufffd"
_AT_ONCE, _AHEAD = 32, 8
"""Tokens whose text is worked out at once, and those read beyond them to complete their last character."""


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
    texts, begins = _read(source.contexts("evaluate", 32, most), most, getattr(tokenizer, "all_special_ids", ()))
    names: Sequence[str] = getattr(source, "documents", ())
    rows: list[int] = []
    documents: list[tuple[str, int, int]] = []
    for text in texts:
        first, numbers = len(rows), words.running(text.ids)
        rows += [numbers[at] for at in text.shown]
        called = names[text.document] if text.document < len(names) else str(text.document)
        documents.append((called, first, len(rows)))
    note = NUMBERS.format(name) if tokenizer is None else ""
    return TokenTable(words, np.array(rows, np.int64), np.array(begins, np.int64), documents, note)


@dataclass
class _Text:
    """A document's tokens in order, and which of them are rows."""

    document: int
    ids: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)


def _read(batches: Iterable[Contexts], most: int, special: Iterable[int]) -> tuple[list[_Text], list[int]]:
    """The documents of the first ``most`` rows, and the first row of each context."""
    aside = torch.tensor(sorted(special), dtype=torch.int64)
    texts: list[_Text] = []
    begins: list[int] = []
    rows = 0
    for batch in batches:
        read = (batch.attention_mask.bool() & ~torch.isin(batch.input_ids, aside)) | batch.keep
        for tokens, own, keep, document in zip(
            batch.input_ids, read, batch.keep, batch.document.tolist(), strict=True
        ):
            if rows >= most:
                return texts, begins
            begins.append(rows)
            if not texts or texts[-1].document != document:
                texts.append(_Text(document))
            text = texts[-1]
            kept = torch.masked_select(keep, own).nonzero()[:, 0][: most - rows]
            text.shown += (kept + len(text.ids)).tolist()
            text.ids += torch.masked_select(tokens, own).tolist()
            rows += len(kept)
    return texts, begins


def _tokenizer(name: str) -> Any:
    try:
        return load_tokenizer(name)
    except ApportionError:
        return None
