"""Every formula tells an easy text from a hard one, by its own direction; what is too short gets no score."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from apportion.complexity import Readability, ReadabilityConfig, Text, Tools
from apportion.complexity.readability import FORMULAS
from apportion.errors import InvalidConfig, MissingExtra

pytest.importorskip("textstat")

from .conftest import EASY, HARD


def scorer(formula: str = "flesch_kincaid_grade", **settings: Any) -> Readability:
    return ReadabilityConfig(formula=formula, **settings).build(Tools())


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_hard_text_is_more_complex_in_the_direction_that_is_stated(formula: str) -> None:
    one = scorer(formula)
    easy, hard = one.score([Text("e", EASY), Text("h", HARD)])
    assert easy.value is not None and hard.value is not None
    assert one.direction * hard.value > one.direction * easy.value


@pytest.mark.parametrize("formula", FORMULAS)
def test_people_agree_with_the_direction(formula: str, rated: list[dict[str, Any]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    one = scorer(formula)
    pairs = zip(rated, one.score([Text(row["id"], row["text"]) for row in rated]), strict=True)
    found = [(row["easiness"], one.direction * done.value) for row, done in pairs if done.value is not None]
    assert len(found) > 0.9 * len(rated)
    assert stats.spearmanr(*zip(*found, strict=True)).statistic < -0.2


def test_flesch_as_its_author_defined_it() -> None:
    text = "The cat sat on the mat today. The dogs all ran over the hill. My father was happy."
    words, sentences, syllables = 18, 3, 22
    (done,) = scorer("flesch_reading_ease").score([Text("0", text)])
    expected = 206.835 - 1.015 * words / sentences - 84.6 * syllables / words
    assert done.value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("formula", "text", "reason"),
    [
        ("flesch_kincaid_grade", "Nine words are too few to say anything here.", "fewer than 10 words"),
        ("linsear_write_formula", "Ninety words are too few for it, too. " * 11, "fewer than 100 words"),
        ("smog_index", "This is one sentence only, and it goes on and on for a while.", "fewer than 3 sentences"),
        ("flesch_reading_ease", "... !! ?", "fewer than 10 words"),
    ],
)
def test_what_is_too_short_has_no_score(formula: str, text: str, reason: str) -> None:
    (done,) = scorer(formula).score([Text("0", text)])
    assert (done.value, done.failure) == (None, reason)


def test_the_least_number_of_words_can_be_raised() -> None:
    (done,) = scorer(min_words=1000).score([Text("0", EASY)])
    assert done.failure == "fewer than 1000 words"


def test_settings_name_the_release_that_counted() -> None:
    assert scorer().settings().keys() == {"formula", "min_words", "textstat"}


def test_an_unknown_formula_is_named_with_its_neighbour() -> None:
    with pytest.raises(InvalidConfig, match=r"unknown formula 'smogg'; nearest: 'smog_index'"):
        ReadabilityConfig.parse({"formula": "smogg"}, "scorer readability")


def test_another_language_setting_of_the_user_is_neither_read_nor_changed() -> None:
    import textstat

    (before,) = scorer("flesch_reading_ease").score([Text("0", EASY)])
    textstat.textstat.set_lang("de")
    try:
        (after,) = scorer("flesch_reading_ease").score([Text("0", EASY + " ")])
        assert textstat.flesch_reading_ease(EASY) != before.value, "the user's own setting holds"
    finally:
        textstat.textstat.set_lang("en_US")
    assert after.value == before.value


def test_without_textstat_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("textstat"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"install apportion\[score\]"):
        scorer()


def test_without_a_dictionary_of_syllables_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["textstat.textstat"]

    def missing(self: Any, text: str) -> int:
        raise LookupError("\n*****\n  Resource 'cmudict' not found.\n*****")

    monkeypatch.setattr(module.textstatistics, "syllable_count", missing)
    with pytest.raises(MissingExtra, match=r"no dictionary of syllables .* install apportion\[score\]"):
        scorer()
