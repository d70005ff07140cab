"""What every scorer promises, run over all that are registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from apportion.complexity import Scorer, ScorerConfig, Text, Tools

from .conftest import EASY, HARD
from .judge_server import JudgeServer, rated

SETTINGS: dict[str, dict[str, Any]] = {
    "column": {"column": "ease", "direction": "down"},
    "llm": {"model": "m", "key_env": None, "attempts": 1, "backoff": 0.0},
    "readability": {"formula": "flesch_reading_ease"},
    "surprisal": {"model": "tiny", "batch_size": 2},
}
"""One working config of each kind; a new one needs an entry here."""

TEXTS = [
    Text("easy", EASY, label=2.5),
    Text("blank", "!", label=None),
    Text("hard", HARD, 3, label=-1.0),
    Text("easy", EASY, 9, label=2.5),
    Text("both", EASY + HARD, label=0.0),
]


@pytest.fixture(params=sorted(SETTINGS))
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scorer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as server:
        server.behave = lambda text, before: (
            rated(lexical=min(10, len(text) / 200)) if len(text) > 1 else rated(lexical=None)
        )
        address = {"url": server.url} if request.param == "llm" else {}
        config = ScorerConfig.lookup(request.param)
        tools = request.getfixturevalue("tools") if request.param == "surprisal" else Tools()
        yield config.parse({"kind": request.param} | address | SETTINGS[request.param], "scorer").build(tools)


def test_every_kind_is_here() -> None:
    assert set(SETTINGS) == set(ScorerConfig.members)


def test_one_result_per_text_in_their_order(scorer: Scorer) -> None:
    done = list(scorer.score(TEXTS))
    assert [(one.id, one.start, one.digest) for one in done] == [(t.id, t.start, t.digest) for t in TEXTS]
    assert all((one.value is None) != (one.failure is None) for one in done)


def test_what_cannot_be_scored_is_a_failure_with_a_reason(scorer: Scorer) -> None:
    blank = list(scorer.score(TEXTS))[1]
    assert blank.value is None and blank.failure and "blank" not in blank.failure


def test_it_states_its_direction(scorer: Scorer) -> None:
    assert scorer.direction in (1, -1)
    easy, hard = (scorer.direction * (one.value or 0.0) for one in scorer.score([TEXTS[0], TEXTS[2]]))
    assert hard > easy


def test_a_score_depends_on_no_other_text_and_not_on_the_name(scorer: Scorer) -> None:
    together = [one.value for one in scorer.score(TEXTS)]
    alone = [next(scorer.score([text])).value for text in TEXTS]
    assert together == [None if value is None else pytest.approx(value, rel=1e-5) for value in alone]
    assert together[0] == pytest.approx(together[3], rel=1e-5)


def test_it_is_lazy_and_may_be_left_early(scorer: Scorer) -> None:
    def endless() -> Iterator[Text]:
        while True:
            yield from TEXTS

    running = scorer.score(endless())
    assert next(running).id == "easy"
    running.close()
    assert [one.id for one in scorer.score(TEXTS[:1])] == ["easy"], "it can be used again"
    assert list(scorer.score([])) == []


def test_settings_are_json_and_hold_the_config(scorer: Scorer) -> None:
    settings = scorer.settings()
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    kept = scorer.config.model_dump(mode="json", exclude={"kind"})
    assert all(settings[name] == value for name, value in kept.items() if value is not None)
