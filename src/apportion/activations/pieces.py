"""A text's tokens by and by: a long text is tokenised in pieces, and its tokens are those of the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE, OVERLAP, MARGIN = 65_536, 4_096, 1_024
"""Characters: of a piece, of what two pieces share, and of either end of that which is not looked at."""

_NORMALIZERS = {
    *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip", "BertNormalizer"),
    *("Precompiled", "Prepend", "Replace", "ByteLevel", "Sequence"),
}
_PRE_TOKENIZERS = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence"),
    *("Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}
_SPACE = "▁"

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a text.

    Attributes:
        ids: [n] int32.
        spans: [n, 2] the characters of each, from and up to.
        heads: [n] bool, where a word begins.
    """

    ids: NDArray[np.int32]
    spans: Ints
    heads: NDArray[np.bool_]

    def part(self, begin: int, end: int | None = None) -> Tokens:
        """Those from ``begin`` up to ``end``."""
        return Tokens(self.ids[begin:end], self.spans[begin:end], self.heads[begin:end])


class Pieces:
    """Tokenises a text in pieces that give the tokens of the whole, without special ones around them.

    A tokenizer reads words from left to right, and what it makes of a word depends on no other one. So two pieces
    that overlap are joined where a word begins in both: what comes after it is the same whatever came before.
    All tokens around a joint must agree, else the piece is made longer. A tokenizer with a part that is not known
    to work like this reads a text whole, as does one to which a text is a single word.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        normalizers, pre_tokenizers = _kinds(backend.normalizer), _kinds(backend.pre_tokenizer)
        random = getattr(backend.model, "dropout", None)
        self._known = normalizers <= _NORMALIZERS and pre_tokenizers <= _PRE_TOKENIZERS and not random
        self._inner = _inner_spaces(tokenizer) if self._known and not pre_tokenizers else None

    def read(self, text: str) -> Iterator[Tokens]:
        """The tokens of ``text``, in order, some at a time."""
        at, size, first = 0, PIECE if self._known else len(text), 0
        held = self._tokens(text, at, size)
        while at + size < len(text):
            after = _last_head(held, at + size - OVERLAP)
            fresh = self._tokens(text, after, PIECE)
            joint = _joint(held, fresh, after + MARGIN, at + size - MARGIN)
            if joint is None:
                size *= 2
                held = self._tokens(text, at, size)
                continue
            yield held.part(first, joint[0])
            at, size, first, held = after, PIECE, joint[1], fresh
        yield held.part(first)

    def _tokens(self, text: str, at: int, size: int) -> Tokens:
        """The tokens of the piece of ``text`` that begins at ``at``."""
        (found,) = encoded(self._tokenizer, [text[at : at + size]])
        ids = np.array(found.ids, np.int32)
        words = np.array([-1 if word is None else word for word in found.word_ids], np.int64)
        heads = np.append(True, words[1:] != words[:-1])[: len(ids)]
        if self._inner is not None and len(ids):
            spaced, bare = self._inner[ids] > 0, self._inner[ids] < 2
            heads[1:] |= spaced[1:] & bare[:-1]
        return Tokens(ids, np.array(found.offsets, np.int64).reshape(-1, 2) + at, heads)


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """What ``tokenizer`` makes of each whole text, without special tokens around it."""
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a text may be longer than the model reads at once
    )
    return list(found.encodings)


def _last_head(held: Tokens, at: int) -> int:
    """Where the first word of ``held`` from the character ``at`` on begins; ``at`` if none does."""
    starts = held.spans[held.heads, 0]
    later = starts[starts >= at]
    return int(later[0]) if len(later) else at


def _joint(one: Tokens, other: Tokens, low: int, high: int) -> tuple[int, int] | None:
    """Where the last word within characters ``low`` to ``high`` begins, in both, if all tokens there agree."""
    places = []
    for tokens in (one, other):
        inside = np.flatnonzero((tokens.spans[:, 0] >= low) & (tokens.spans[:, 1] <= high))
        if len(inside) == 0:
            return None
        places.append((int(inside[0]), int(inside[-1]) + 1))
    (a, a_end), (b, b_end) = places
    left, right = one.part(a, a_end), other.part(b, b_end)
    alike = all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("ids", "spans", "heads"))
    heads = np.flatnonzero(left.heads)
    return (a + int(heads[-1]), b + int(heads[-1])) if alike and len(heads) else None


def _kinds(part: Any) -> set[str]:
    """The kinds of a normalizer or pre-tokenizer and of all that it is a sequence of."""
    return set() if part is None else _types(json.loads(part.__getstate__()))


def _types(state: Any) -> set[str]:
    if isinstance(state, list):
        return set().union(*map(_types, state))
    if not isinstance(state, dict) or "type" not in state:
        return set()
    return {state["type"]}.union(*(_types(value) for value in state.values() if isinstance(value, list)))


def _inner_spaces(tokenizer: Any) -> NDArray[np.int8] | None:
    """[vocabulary] 1 for tokens that begin with the mark of a space, 2 for those of nothing else, 0 for others.

    For a tokenizer that takes a text for one word (BPE, as converted from SentencePiece). None if a token has a
    space behind something else: then what stands before a space is not apart from what comes after it.
    """
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ != "BPE" or model.ignore_merges:
        return None
    vocabulary = tokenizer.get_vocab()
    if any(_SPACE in token.lstrip(_SPACE) for token in vocabulary):
        return None
    found = np.zeros(max(vocabulary.values()) + 1, np.int8)
    for token, number in vocabulary.items():
        if token.startswith(_SPACE):
            found[number] = 1 if token.lstrip(_SPACE) else 2
    return found
