"""A text in pieces has the tokens of the whole, whatever the tokenizer, and none is read ahead of its need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from apportion.activations import pieces
from apportion.activations.contexts import windows_of
from apportion.activations.pieces import Pieces, encoded

from .tokenizers_kit import ALL, CORPUS, llama2, smollm2, tiktoken_like, tiny_lm, unigram

BITS = (
    *(
        "word",
        "Interdepartmental",
        " ",
        "  ",
        "\n",
        "\n\n\t",
        "\r\n",
        ", ",
        "...",
        "'s",
        "don't",
        "'",
        "12",
        "3456789",
    ),
    *(
        "ß",
        "é",
        "e\u0301",
        "\u0301",
        "한국",
        "\u1112\u1161",
        "世界。",
        "你",
        "😀",
        "👩\u200d🔬",
        "🇩🇪",
        "\ufffd",
        "\u200b",
    ),
    *(
        "▁",
        "▁▁",
        "<s>",
        "[MASK]",
        "[UNK]",
        "<|endoftext|>",
        "<|im_start|>",
        "\u00a0",
        "\u3000",
        "ﬁ",
        "İ",
        "x" * 30,
    ),
)
TEXTS = st.lists(st.sampled_from(BITS), min_size=20, max_size=160).map("".join)


def whole(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    (found,) = encoded(tokenizer, [text])
    return found.ids, found.offsets


def in_pieces(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]], int]:
    parts = list(Pieces(tokenizer).read(text))
    ids = [token for part in parts for token in part.ids.tolist()]
    return ids, [tuple(span) for part in parts for span in part.spans.tolist()], len(parts)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("PIECE", 160), ("OVERLAP", 80), ("MARGIN", 20)):
        monkeypatch.setattr(pieces, name, size)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(text=" ".join(CORPUS))
@example(text="\n \n".join(CORPUS).replace(" ", "  "))
@example(text="x" * 400 + " y" * 100)
@given(text=TEXTS)
def test_pieces_give_the_tokens_of_the_whole(small: None, name: str, text: str) -> None:
    tokenizer = ALL[name]()
    ids, spans, _ = in_pieces(tokenizer, text)
    assert (ids, spans) == whole(tokenizer, text)


@pytest.mark.parametrize("name", ALL)
def test_a_real_text_is_read_in_many_pieces(small: None, name: str) -> None:
    text = " ".join(CORPUS) * 2
    assert in_pieces(ALL[name](), text)[2] > len(text) / 200
    first = next(Pieces(ALL[name]()).read(text * 1000))
    assert first.spans[-1, 1] <= 320


def test_pieces_of_the_size_in_use() -> None:
    text = "".join(f"{line} {n * n}.\n" for n in range(600) for line in CORPUS[:2])
    for tokenizer in (tiny_lm(), llama2()):
        ids, spans, n = in_pieces(tokenizer, text)
        assert (ids, spans) == whole(tokenizer, text) and n >= 2


def test_a_tokenizer_that_is_not_known_to_go_word_by_word_reads_the_whole(small: None) -> None:
    text = " ".join(CORPUS)

    def changed(tokenizer: Any, change: Any) -> Any:
        copy = type(tokenizer)(
            tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        )
        change(copy.backend_tokenizer)
        return copy

    def by_length(backend: Any) -> None:
        backend.pre_tokenizer = pre_tokenizers.FixedLength(7)

    def one_word(backend: Any) -> None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def with_inner_space(backend: Any) -> None:
        backend.add_tokens(["of▁all"])

    cases = [(tiktoken_like(), by_length), (tiktoken_like(), one_word), (llama2(), with_inner_space)]
    for tokenizer, change in [*cases, (unigram(), lambda backend: setattr(backend, "pre_tokenizer", None))]:
        other = changed(tokenizer, change)
        ids, spans, n = in_pieces(other, text)
        assert (ids, spans) == whole(other, text) and n == 1


@pytest.mark.parametrize("name", ["smollm2", "llama2", "minilm"])
def test_windows_of_a_long_text_are_made_as_they_are_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ALL[name]()
    text = "".join(f"{line} {n * n}.\n" for n in range(600) for line in CORPUS[:2])
    short, long = text[:1000], text
    lazy = windows_of([short, long, short], 3, tokenizer, 50, True, skip_first=1)
    assert [isinstance(own, list) for own in lazy] == [True, False, True]
    found = [list(own) for own in lazy]
    monkeypatch.setattr("apportion.activations.contexts.PIECE", 10**9)
    expected = windows_of([short, long, short], 3, tokenizer, 50, True, skip_first=1)
    for own, other in zip(found, expected, strict=True):
        for one, two in zip(own, other, strict=True):
            assert (one.document, one.start, one.span) == (two.document, two.start, two.span)
            assert np.array_equal(one.ids, two.ids) and np.array_equal(one.keep, two.keep)


def test_memory_is_that_of_a_piece_however_long_the_text() -> None:
    text = "Owners, speakers and others met at noon. " * 200_000  # 8 MB
    asked: list[int] = []

    class Watched:
        backend_tokenizer = smollm2().backend_tokenizer

        def __call__(self, texts: list[str], **options: Any) -> Any:
            asked.append(len(texts[0]))
            return smollm2()(texts, **options)

    read = Pieces(Watched()).read(text)
    assert sum(len(next(read).ids) for _ in range(3)) > 30_000
    assert len(asked) == 4 and max(asked) == pieces.PIECE
