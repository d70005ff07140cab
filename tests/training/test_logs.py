"""Records of training: lines of JSON always, services when asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import apportion as ap
from apportion.errors import InvalidCheckpoint, MissingExtra, UnknownName
from apportion.training.log import JsonLines, flatten

from .training_kit import config, records, settings, source

RUNS = {"a": config("token_choice"), "b": config("mutual_choice")}


def test_the_log_has_a_record_every_so_many_steps_and_one_of_the_end(tmp_path: Path) -> None:
    ap.train(RUNS, source(), tmp_path, settings(12, log_every=5))
    for name, run in RUNS.items():
        found = records(tmp_path / name)
        assert [record["step"] for record in found] == [0, 5, 10, 11]
        assert [record["tokens"] for record in found] == [64, 384, 704, 768]
        last = found[-1]
        assert {"loss", "fvu", "l0", "dead", "grad_norm", "lr"} <= last.keys()
        assert last["lr"] == run.lr(ap.Clock(11, 12))
        assert last["l0"] <= 4.0 and found[0]["fvu"] > last["fvu"] > 0
        times = [json.loads(line)["time"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert all(time["tokens_per_s"] > 0 for time in times)


def test_tensorboard_gets_every_number_of_every_run(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    ap.train(RUNS, source(), tmp_path, settings(6, log_every=2), sinks=["tensorboard"])
    for name in RUNS:
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / name))
        events.Reload()
        found = [(event.step, event.value) for event in events.Scalars("loss/reconstruction")]
        logged = [(record["step"], record["loss"]["reconstruction"]) for record in records(tmp_path / name)]
        assert found == [(step, pytest.approx(value)) for step, value in logged]
        assert {"fvu", "l0", "lr", "time/tokens_per_s"} <= set(events.Tags()["scalars"])


def test_an_unknown_sink_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown log 'tensorbord'; nearest: 'tensorboard'"):
        ap.train(RUNS, source(), tmp_path, settings(2), sinks=["tensorbord"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_sink_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'apportion\[wandb\]'"):
        ap.train(RUNS, source(), tmp_path, settings(2), sinks=["wandb"])


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    log.write({"step": 0, "fvu": float("nan"), "loss": {"a": float("inf"), "b": 1.5}})
    log.close()
    assert records(tmp_path) == [{"step": 0, "fvu": None, "loss": {"a": None, "b": 1.5}}]


def test_a_resumed_log_is_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    log.write({"step": 0})
    kept = log.position()
    log.write({"step": 1})
    log.close()
    again = JsonLines(tmp_path / "log.jsonl", kept)
    again.write({"step": 2})
    again.close()
    assert records(tmp_path) == [{"step": 0}, {"step": 2}]
    with pytest.raises(InvalidCheckpoint, match="shorter than its checkpoint"):
        JsonLines(tmp_path / "log.jsonl", 10_000)


def test_flatten_names_nested_numbers_by_path() -> None:
    assert flatten({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": "word", "g": None}) == {
        "a": 1.0,
        "b/c": 2.5,
        "b/d/e": 3.0,
    }


def test_damage_in_a_log_is_noticed_and_its_lines_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0, "fvu": 0.5}\n')  # of a version without checksums
    log = JsonLines(path, path.stat().st_size)
    for step in range(1, 5):
        log.write({"step": step, "fvu": 0.25})
    kept = log.position()
    log.close()
    JsonLines(path, kept).close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines] == list(range(5))
    damaged = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(lines[0]), len(whole), 7)
    ]
    damaged += [b"".join(lines[:2] + lines[3:]), b"".join([*lines[:2], lines[3], lines[2], lines[4]])]
    for data in (*damaged, b"1" * 99, b"[" * 5000, b"[]\n", b"{}\n"):
        path.write_bytes(data)
        with pytest.raises(InvalidCheckpoint, match=r"line \d, does not match its checksum"):
            JsonLines(path, len(data))
