"""The judge against a real server that also refuses, stalls, breaks off and answers nonsense."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from apportion.complexity import Judge, JudgeConfig, Scored, Text, Tools
from apportion.complexity.llm import Dimension, paper_rubric
from apportion.errors import EndpointFailure, InvalidConfig, MissingExtra, StorageFailure

from . import judge_program
from .judge_server import SCORE, JudgeServer, Reply, completion, rated

pytest.importorskip("httpx2")

KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as running:
        yield running


def judge(server: JudgeServer | str, cache: Path | None = None, **settings: Any) -> Judge:
    url = server if isinstance(server, str) else server.url
    quick = {"model": "m", "url": url, "key_env": None, "backoff": 0.001, "timeout": 5.0, "per_minute": 1e6}
    return JudgeConfig.parse(quick | settings, "scorer llm").build(Tools(cache=cache))


def texts(n: int) -> list[Text]:
    return [Text(str(i), f"text {i}") for i in range(n)]


def test_the_score_is_the_weighted_sum_of_the_paper(server: JudgeServer) -> None:
    weights = {name: dimension.weight for name, dimension in paper_rubric().items()}
    assert sum(weights.values()) == pytest.approx(1)
    assert list(weights.values()) == [0.20, 0.20, 0.25, 0.15, 0.10, 0.10]
    (done,) = judge(server).score([Text("a", "some text")])
    assert done.value == pytest.approx(SCORE) and done.parts["conceptual_density"] == 3
    _, _, body = server.requests[0]
    assert body["temperature"] == 0.1 and body["response_format"] == {"type": "json_object"}
    assert all(name in body["messages"][0]["content"] for name in weights)
    assert body["messages"][1] == {"role": "user", "content": "some text"}


def test_a_rubric_of_ones_own_with_any_weights(server: JudgeServer) -> None:
    server.behave = lambda text, before: Reply(body=completion('```json\n{"wit": "10", "wisdom": 2.5}\n```'))
    rubric = {"wit": {"weight": 3, "question": "?"}, "wisdom": {"weight": 1, "question": "?"}}
    settings = {"rubric": rubric, "temperature": None, "json_mode": False, "extra": {"max_tokens": 9}}
    (done,) = judge(server, **settings).score([Text("a", "x")])
    assert done.value == pytest.approx((3 * 10 + 2.5) / 4)
    _, _, body = server.requests[0]
    assert body.keys() == {"model", "messages", "max_tokens"}


def test_many_at_once_in_order_and_no_more_than_allowed(server: JudgeServer) -> None:
    server.behave = lambda text, before: rated()._replace(delay=0.002 * (int(text.split()[1]) % 5))
    done = list(judge(server, concurrency=5).score(texts(60)))
    assert [one.id for one in done] == [str(i) for i in range(60)]
    assert all(one.value == pytest.approx(SCORE) for one in done)
    assert 2 <= server.most <= 5
    assert set(server.asked.values()) == {1}


def test_the_same_text_is_paid_for_once(server: JudgeServer) -> None:
    server.behave = lambda text, before: rated()._replace(delay=0.005)
    twins = [Text(str(i), f"text {i % 3}") for i in range(30)]
    done = list(judge(server).score(twins))
    assert len(done) == 30 and set(server.asked.values()) == {1}


def test_the_rate_is_kept(server: JudgeServer) -> None:
    list(judge(server, per_minute=60 * 50, concurrency=8).score(texts(15)))
    arrivals = [at for at, _, _ in server.requests]
    assert arrivals[-1] - arrivals[0] >= 14 * 0.02 - 0.01


TRANSIENT = {
    "429": Reply(429, b'{"error": {"message": "slow down"}}', (("Retry-After", "0"),)),
    "500": Reply(500, b"<html>oops"),
    "503 without body": Reply(503),
    "408": Reply(408),
    "garbage": Reply(body=b"\x00\xff not json"),
    "another object": Reply(body=b'{"choices": []}'),
    "no text": Reply(body=completion(None)),
    "prose": Reply(body=completion("I would say seven.")),
    "a list": Reply(body=completion("[1, 2, 3]")),
    "nested for ever": Reply(body=completion('{"lexical":' * 5000 + "1" + "}" * 5000)),
    "a missing field": rated(syntactic=None),
    "a rating above ten": rated(lexical=11),
    "a negative rating": rated(lexical=-1),
    "a word": rated(lexical="high"),
    "a boolean": rated(lexical=True),
    "NaN": rated(lexical=float("nan")),
    "null": Reply(body=completion(json.dumps(dict.fromkeys(paper_rubric())))),
    "a broken encoding": Reply(body=b"not gzip", headers=(("Content-Encoding", "gzip"),)),
    "an answer without end": Reply(body=b" " * 2**21),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_may_pass_is_tried_again(server: JudgeServer, fault: str) -> None:
    server.behave = lambda text, before: TRANSIENT[fault] if before < 2 else rated()
    done = list(judge(server, attempts=3).score(texts(3)))
    assert [one.value for one in done] == [pytest.approx(SCORE)] * 3
    assert set(server.asked.values()) == {3}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "status 429: slow down"),
        ("500", "status 500"),
        ("garbage", "an answer that is no chat completion"),
        ("prose", "an answer that is no JSON"),
        ("a missing field", "an answer without 'syntactic'"),
        ("a rating above ten", "an answer whose 'lexical' is no number from 0 to 10"),
        ("an answer without end", "an answer of more than 1,048,576 bytes"),
    ],
)
def test_what_does_not_pass_is_left_out_and_never_zero(
    server: JudgeServer, tmp_path: Path, fault: str, reason: str
) -> None:
    server.behave = lambda text, before: TRANSIENT[fault] if text == "text 1" else rated()
    done = list(judge(server, tmp_path, attempts=2).score(texts(3)))
    assert [(one.value, one.failure) for one in (done[1],)] == [(None, reason)]
    assert done[0].value == done[2].value == pytest.approx(SCORE)
    assert server.asked["text 1"] == 2
    server.behave = lambda text, before: rated()
    again = list(judge(server, tmp_path).score(texts(3)))
    assert again[1].value == pytest.approx(SCORE)
    assert server.asked == {"text 0": 1, "text 1": 3, "text 2": 1}


def test_an_answer_that_takes_too_long_is_tried_again(server: JudgeServer) -> None:
    stall = rated()._replace(delay=0.6)
    server.behave = lambda text, before: stall if text == "text 1" and before == 0 else rated()
    done = list(judge(server, timeout=0.2).score(texts(2)))
    assert [one.value for one in done] == [pytest.approx(SCORE)] * 2 and server.asked["text 1"] == 2


def test_an_answer_that_trickles_in_is_cut_off(server: JudgeServer) -> None:
    trickle = Reply(body=b" " * 500, trickle=True)
    server.behave = lambda text, before: trickle if text == "text 1" else rated()
    begun = time.monotonic()
    done = list(judge(server, timeout=0.2, attempts=2).score(texts(2)))
    assert done[1].failure == "no answer within 0.2 s" and time.monotonic() - begun < 3


def test_retry_after_holds_everybody_back(server: JudgeServer) -> None:
    held = Reply(429, b"", (("Retry-After", "0.3"),))
    server.behave = lambda text, before: held if text == "text 0" and before == 0 else rated()
    list(judge(server).score(texts(4)))
    arrivals = [at for at, _, _ in server.requests]
    assert all(at - arrivals[0] >= 0.3 for at in arrivals[1:]) and len(arrivals) == 5


def test_retry_after_may_be_a_date_and_too_long(server: JudgeServer, tmp_path: Path) -> None:
    late = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    refused = Reply(429, b"", (("Retry-After", late),))
    server.behave = lambda text, before: refused if text == "text 2" else rated()
    found: list[Scored] = []
    with pytest.raises(EndpointFailure, match=r"asks to wait 3,[56]\d\d s; run the same command again then"):
        found.extend(judge(server, tmp_path, concurrency=1).score(texts(9)))
    assert server.asked["text 2"] == 1
    server.behave = lambda text, before: rated()
    assert len(list(judge(server, tmp_path).score(texts(9)))) == 9
    assert server.asked.pop("text 2") == 2 and set(server.asked.values()) == {1}
    for odd in ("soon", "-3", "nan", "inf", ""):
        server.behave = lambda text, before, odd=odd: (
            Reply(503, b"", (("Retry-After", odd),)) if before == 0 else rated()
        )
        assert next(judge(server).score([Text("0", f"odd {odd}")])).value == pytest.approx(SCORE)


STOPS = {
    "a refused key": (
        Reply(401, f'{{"error": {{"message": "Incorrect key {KEY}."}}}}'.encode()),
        r"refuses the key \(401: Incorrect key \[key\]\); set the environment variable JUDGE_KEY to a key",
    ),
    "a key without rights": (Reply(403), r"refuses the key \(403\); set the environment variable JUDGE_KEY"),
    "an unknown model": (
        Reply(404, b'{"error": {"message": "The model m does not exist"}}'),
        r"knows no such model or address \(404: The model m does not exist\); correct model, or url",
    ),
    "another place": (
        Reply(301, b"", (("Location", "http://127.0.0.1:9/v1"),)),
        r"\(301\); correct model, or url",
    ),
    "no credit": (
        Reply(429, b'{"error": {"message": "Quota exceeded", "code": "insufficient_quota"}}'),
        r"no credit left for this key \(429: Quota exceeded\); top it up; answers so far are kept",
    ),
}


@pytest.mark.parametrize("case", STOPS)
def test_an_endpoint_that_refuses_stops_before_any_work(
    server: JudgeServer, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, words = STOPS[case]
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.behave = lambda text, before: reply
    with pytest.raises(EndpointFailure, match=words) as caught:
        list(judge(server, key_env="JUDGE_KEY").score(texts(50)))
    assert len(server.requests) == 1 and KEY not in str(caught.value)
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_a_refusal_midway_keeps_what_was_answered(server: JudgeServer, tmp_path: Path) -> None:
    server.behave = lambda text, before: Reply(401) if text == "text 20" else rated()
    with pytest.raises(EndpointFailure, match=r"refuses the key \(401\); name the environment variable"):
        list(judge(server, tmp_path).score(texts(50)))
    server.behave = lambda text, before: rated()
    assert len(list(judge(server, tmp_path).score(texts(50)))) == 50
    assert server.asked.pop("text 20") == 2 and set(server.asked.values()) == {1}


def test_an_endpoint_that_is_not_there_stops_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        begun = time.monotonic()
        with pytest.raises(EndpointFailure, match=rf"{url} cannot be reached \(.+\); correct its url"):
            list(judge(url, backoff=60).score(texts(5)))
    assert time.monotonic() - begun < 5


def test_an_endpoint_that_never_answers_stops(server: JudgeServer) -> None:
    server.behave = lambda text, before: rated()._replace(delay=0.5)
    with pytest.raises(EndpointFailure, match=r"cannot be reached \(no answer within 0\.1 s\)"):
        list(judge(server, timeout=0.1, attempts=2).score(texts(5)))
    assert set(server.asked) == {"text 0"}


def test_an_endpoint_that_goes_away_midway_stops_and_keeps_what_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with JudgeServer() as server:
        server.behave = lambda text, before: rated()._replace(headers=(("Connection", "close"),))
        running = judge(server, tmp_path, concurrency=1, attempts=2).score(texts(300))
        assert next(running).value == pytest.approx(SCORE)
    with pytest.raises(EndpointFailure, match="cannot be reached"):
        list(running)
    kept = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert 1 <= len(kept) < 300 and len(kept) >= sum(server.asked.values()) - 1


def test_one_text_that_is_refused_is_left_out_and_many_are_a_wrong_setting(server: JudgeServer) -> None:
    refused = Reply(400, b'{"error": {"message": "context length exceeded"}}')
    server.behave = lambda text, before: refused if text == "text 0" else rated()
    done = list(judge(server).score(texts(3)))
    assert done[0].failure == "refused with status 400: context length exceeded"
    assert done[1].value == done[2].value == pytest.approx(SCORE)
    assert server.asked["text 0"] == 1
    server.behave = lambda text, before: refused
    with pytest.raises(
        EndpointFailure, match=r"takes no request \(400: context length exceeded\); correct model"
    ):
        list(judge(server, concurrency=1).score(texts(300)))
    assert sum(server.asked.values()) < 10


def test_the_key_is_written_nowhere(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    echo = Reply(500, f"you sent {KEY}".encode())
    server.behave = lambda text, before: echo if text == "text 1" else rated()
    one = judge(server, tmp_path, key_env="JUDGE_KEY", attempts=1)
    done = list(one.score(texts(3)))
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    for held in (repr(done), repr(one.settings()), repr(one.config), written, *capfd.readouterr()):
        assert KEY not in held


@pytest.mark.parametrize(
    ("value", "name", "words"),
    [
        (None, "JUDGE_KEY", "the environment variable JUDGE_KEY is not set.*name another one with key_env"),
        ("  ", "JUDGE_KEY", "the environment variable JUDGE_KEY is not set"),
        ("caf\u00e9", "JUDGE_KEY", "the key in JUDGE_KEY holds characters that no header can"),
        ("a\nb", "JUDGE_KEY", "the key in JUDGE_KEY holds characters that no header can"),
        ("x", KEY, "key_env names no environment variable"),
    ],
)
def test_a_key_that_cannot_be_used_stops_before_any_request(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, value: str | None, name: str, words: str
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(EndpointFailure, match=words) as caught:
        judge(server, key_env=name)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost:8000"}, "expected an address such as"),
        ({"url": "ftp://host/v1"}, "expected an address such as"),
        ({"url": "http://host:99999999/v1"}, "url"),
        ({"url": f"https://user:{KEY}@host/v1"}, "an address holds no key"),
        ({"url": "https://host/v1?key=1"}, "an address holds no key"),
        ({"url": f"https://host:{KEY}/v1"}, "the port a number"),
        ({"url": f"https://[{KEY}/v1"}, "expected an address such as"),
        ({"extra": {"api_key": KEY}}, "'api_key' is one for a secret"),
        ({"extra": {"headers": [{"X-Api-Key": KEY}]}}, "'X-Api-Key' is one for a secret"),
        ({"extra": KEY}, "'extra': Input should be"),
        ({"model": ""}, "model"),
        ({"rubric": {}}, r"'rubric' = .*at least 1 item"),
        ({"rubric": {"wit": {"weight": 0, "question": "?"}}}, "weight"),
        ({"concurrency": 0}, "concurrency"),
        ({"per_minute": 0}, "per_minute"),
        ({"attempts": 0}, "attempts"),
        ({"timeout": -1}, "timeout"),
        ({"temprature": 1}, "unknown key 'temprature'"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words) as refused:
        judge("http://127.0.0.1:9/v1", **settings)
    assert KEY not in str(refused.value)


def test_the_key_itself_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for settings in ({"extra": {"user": f"me {KEY}"}}, {"model": KEY}, {"url": f"http://127.0.0.1:9/{KEY}/v1"}):
        with pytest.raises(EndpointFailure, match="holds the key itself") as refused:
            judge("http://127.0.0.1:9/v1", key_env="JUDGE_KEY", **settings)
        assert KEY not in str(refused.value)
    judge("http://127.0.0.1:9/v1", key_env="JUDGE_KEY", extra={"max_tokens": 9, "prompt_cache_key": "texts"})


def test_any_spelling_of_the_address() -> None:
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert JudgeConfig(model="m", url=url).url == "http://h/v1"


def test_what_an_answer_depends_on_is_what_it_is_kept_under(server: JudgeServer, tmp_path: Path) -> None:
    one = texts(1)
    changes: list[dict[str, Any]] = [
        {},
        {"model": "other"},
        {"temperature": 0.2},
        {"extra": {"seed": 1}},
        {"rubric": {"lexical": Dimension(weight=1, question="!").model_dump()}},
    ]
    for n, change in enumerate(changes, 1):
        list(judge(server, tmp_path, **change).score(one))
        assert sum(server.asked.values()) == n
    for drive in ({"concurrency": 2}, {"attempts": 1}, {"timeout": 9}, {"per_minute": 99}):
        list(judge(server, tmp_path, **drive).score(one))
    assert sum(server.asked.values()) == len(changes)


def test_kept_answers_that_were_damaged_are_asked_for_again(server: JudgeServer, tmp_path: Path) -> None:
    list(judge(server, tmp_path).score(texts(4)))
    path = tmp_path / "answers.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace(": 1.0,", ": 99.0,")
    path.write_text("\n".join([lines[0], lines[1], "garbage", "[]", lines[2], lines[3][: len(lines[3]) // 2]]))
    for _ in range(2):
        done = list(judge(server, tmp_path).score(texts(4)))
        assert [one.value for one in done] == [pytest.approx(SCORE)] * 4
        assert sum(server.asked.values()) == 6


def test_two_runs_do_not_share_a_cache_at_a_time(server: JudgeServer, tmp_path: Path) -> None:
    running = judge(server, tmp_path).score(texts(50))
    next(running)
    with pytest.raises(StorageFailure, match="another process is judging with the answers in"):
        list(judge(server, tmp_path).score(texts(2)))
    running.close()
    assert len(list(judge(server, tmp_path).score(texts(2)))) == 2


def test_closing_ends_a_long_wait(server: JudgeServer) -> None:
    server.behave = lambda text, before: rated() if text == "text 0" else Reply(500)
    running = judge(server, backoff=100, patience=100, concurrency=2).score(texts(20))
    begun = time.monotonic()
    next(running)
    running.close()
    assert time.monotonic() - begun < 5


def test_a_killed_run_goes_on_where_it_was(server: JudgeServer, tmp_path: Path) -> None:
    n = 60
    server.behave = lambda text, before: rated()._replace(delay=0.03)
    program = [sys.executable, "-m", "tests.complexity.judge_program", server.url, str(tmp_path), str(n)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(program, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}) as running:
        limit = time.monotonic() + 120
        while sum(server.asked.values()) < 15 and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        running.kill()
    asked, kept = sum(server.asked.values()), (tmp_path / "answers.jsonl").read_bytes().count(b"\n")
    assert running.returncode == -signal.SIGKILL and 15 <= asked < n
    assert 0 <= asked - kept <= judge_program.CONCURRENCY, "only what was under way was not received"
    again = judge_program.config(server.url).build(Tools(cache=tmp_path))
    done = list(again.score(judge_program.texts(n)))
    assert [one.value for one in done] == [pytest.approx(SCORE)] * n
    assert sum(server.asked.values()) == n + asked - kept


def test_an_interrupted_run_receives_what_is_under_way(server: JudgeServer, tmp_path: Path) -> None:
    def interrupt(text: str, before: int) -> Reply:
        if text == "text 12":
            os.kill(os.getpid(), signal.SIGINT)
        return rated()._replace(delay=0.03)

    server.behave = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(judge(server, tmp_path, concurrency=3).score(texts(60)))
    finally:
        signal.signal(signal.SIGINT, before)
    asked = sum(server.asked.values())
    assert 13 <= asked <= 20
    server.behave = lambda text, before: rated()
    assert len(list(judge(server, tmp_path).score(texts(60)))) == 60
    assert set(server.asked.values()) == {1}


def test_without_httpx2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtra, match=r"install apportion\[score\]"):
        judge("http://127.0.0.1:9/v1")
