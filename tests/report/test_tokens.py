"""The table of tokens: rows and their texts, and what becomes of a source that has none."""

from __future__ import annotations

import itertools

import pytest
import torch

import apportion as ap
from apportion.activations import LoadedModel, StoreSource
from apportion.errors import InvalidInput
from apportion.report.tokens import Words, read_tokens

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
