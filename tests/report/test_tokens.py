"""The table of tokens: rows and their texts, and what becomes of a source that has none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import apportion as ap
from apportion.activations import LoadedModel, StoreSource, capture_to_store, load_model
from apportion.errors import InvalidInput
from apportion.report.tokens import Words, read_tokens

from ..activations.conftest import shared
from ..activations.tokenizers_kit import ALL, smollm2, tiny_lm
from .report_kit import SCRIPT, documents


def test_rows_are_the_words_of_the_held_out_documents(source: StoreSource, model: LoadedModel) -> None:
    table = read_tokens(source, 10**6, model)
    blocks = list(source.blocks("evaluate"))
    assert len(table.rows) == sum(len(block.x) for block in blocks)
    texts = {document.id: document.text for document in documents()}
    for name, first, last in table.documents:
        words = [table.words.texts[row] for row in table.rows[first:last]]
        assert "".join(words).strip() == texts[name]
    numbers = torch.cat([block.document for block in blocks if block.document is not None]).tolist()
    names = [source.documents[number] for number, _ in itertools.groupby(numbers)]
    assert [name for name, _, _ in table.documents] == names
    assert table.begins.tolist() == list(range(0, len(table.rows), 24)) and table.note == ""


@pytest.mark.parametrize("most", [1, 24, 100])
def test_a_part_ends_where_it_is_told_to(source: StoreSource, model: LoadedModel, most: int) -> None:
    table = read_tokens(source, most, model)
    assert len(table.rows) == most == table.documents[-1][2] and table.begins[-1] < most


def test_without_a_tokenizer_there_are_numbers_and_a_word_about_it(source: StoreSource) -> None:
    table = read_tokens(source, 30)
    assert table.words.texts[table.rows[0]] == " 0"  # SCRIPT, the first word of all
    assert "tokenizer of speaker is not at hand" in table.note


def test_a_source_without_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a TensorSource keeps no text"):
        read_tokens(ap.TensorSource(torch.randn(300, 4)), 10)


class Wordpieces:
    """Marks what goes on with ## and puts a space before anything else that is not first."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [0]

    def batch_decode(self, sequences: list[list[int]], clean_up_tokenization_spaces: bool) -> list[str]:
        vocabulary = ["a", "play", "##ing"]
        pieces = [[vocabulary[token] for token in ids] for ids in sequences]
        return [" ".join(own).replace(" ##", "") for own in pieces]


def test_words_keep_the_spaces_that_they_have_in_a_text_and_are_there_once() -> None:
    words = Words(Wordpieces())
    assert words.of([1, 2, 1]) == [0, 1, 0]
    assert words.of([2, 0]) == [1, 2]
    assert words.texts == [" play", "ing", " a"]


def test_hostile_words_are_words(source: StoreSource, model: LoadedModel) -> None:
    assert f" {SCRIPT}" in read_tokens(source, 30, model).words.texts


GREETING = "Schöne Grüße 😀"


@pytest.mark.parametrize("name", [*ALL])
@pytest.mark.parametrize(
    "text", [GREETING, " ".join([GREETING, "– he said “no”, and\n\tdidn’t 🇩🇪👩‍🔬 go.  Never!"] * 9)]
)
def test_tokens_are_the_text_and_a_character_is_of_the_token_that_completes_it(name: str, text: str) -> None:
    tokenizer = ALL[name]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    words = Words(tokenizer)
    pieces = [words.texts[number] for number in words.running(ids)]
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == whole and len(pieces) == len(ids)
    if name in ("smollm2", "tiny-lm", "tiktoken"):  # nothing is lost by those
        assert whole == text and "\ufffd" not in "".join(words.texts)
    done = ""
    for at, piece in enumerate(pieces):
        done += piece
        if piece:  # what is complete stays as it is, whatever follows
            behind = tokenizer.decode(ids[: at + 1], clean_up_tokenization_spaces=False)
            assert behind.startswith(done)


def test_smollm2_shows_the_greeting_of_the_report() -> None:
    words, ids = Words(smollm2()), smollm2()(GREETING)["input_ids"]
    shown = [words.texts[number] for number in words.running(ids)]
    assert "".join(shown) == GREETING and shown[-1] == "😀"


def test_a_replacement_character_that_is_in_the_text_is_shown_where_it_is() -> None:
    text = "a \ufffd b\ufffd"
    words, ids = Words(tiny_lm()), tiny_lm()(text)["input_ids"]
    shown = [words.texts[number] for number in words.running(ids)]
    assert "".join(shown) == text and shown[-1] == "\ufffd" and "" in shown


def test_single_tokens_of_bytes_are_spelled_out() -> None:
    tokenizer = tiny_lm()
    words, ids = Words(tokenizer), tokenizer("😀")["input_ids"]
    spelled = "".join(words.texts[number] for number in words.of(ids))
    assert spelled == r"\xf0\x9f\x98\x80" and [words.texts[n] for n in words.running(ids)][-1] == "😀"


def test_characters_that_a_context_or_the_end_of_the_rows_cuts_are_whole(tmp_path: Path) -> None:
    model = load_model(str(shared("models/tiny-lm")))
    texts = [f"{n} 😀 {GREETING}" for n in range(40)]
    capture_to_store(model, "gpt_neox.layers.0", ap.activations.load_documents(texts), tmp_path, context=3)
    table = read_tokens(StoreSource(tmp_path), 10**6, model)
    for name, first, last in table.documents:
        assert "".join(table.words.texts[row] for row in table.rows[first:last]) == texts[int(name)]
    short = read_tokens(StoreSource(tmp_path), 4, model)
    known = [table.words.texts[row] for row in table.rows[:4]]
    assert [short.words.texts[row] for row in short.rows] == known
