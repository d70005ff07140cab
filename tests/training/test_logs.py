"""Records of training: lines of JSON always, services when asked for."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import apportion as ap
from apportion.errors import InvalidCheckpoint, MissingExtra, UnknownName
from apportion.training.log import JsonLines, flatten

from .training_kit import Stopped, Watched, config, records, settings, source, stop

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


def test_tensorboard_gets_hyperparameters_and_what_a_run_came_to(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    saes = ap.train(RUNS, source(), tmp_path, settings(6, log_every=2), sinks=["tensorboard"])
    for name, run in RUNS.items():
        (file,) = (tmp_path / "tensorboard" / name).iterdir()  # readers do not come back from a second one
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        given = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
        assert given["sae.d_sae"].number_value == 64 and given["lr.peak"].number_value == run.lr.peak
        assert given["sae.allocator.kind"].string_value == run.sae.allocator.kind
        assert given["train.batch_size"].number_value == 64 and given["source.rows"].number_value == 2048
        (calibrated,) = events.Scalars("end/calibration/l0")
        assert calibrated.value == pytest.approx(saes[name].metadata["calibration"]["l0"])
        (told,) = events.Tensors("config/text_summary")
        assert json.loads(told.tensor_proto.string_val[0])["seed"] == 0


class Recorded:
    """Weights & Biases as far as it is used: the arguments of ``wandb.init`` (0.31) and of a run's methods."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.steps: dict[str, list[int]] = {}
        self.ends: dict[str, Any] = {}

    def init(
        self,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        group: str | None = None,
        reinit: str | None = None,
        resume: str | None = None,
    ) -> Any:
        json.dumps(config)
        self.begun.append({"id": id, "name": name, "group": group, "config": config, "resume": resume})
        steps = self.steps.setdefault(str(id), [])
        ends = self.ends.setdefault(str(id), {})
        return types.SimpleNamespace(
            log=lambda data, step=None: steps.append(step), summary=ends, finish=lambda exit_code=None: None
        )


def test_a_resume_goes_on_with_its_run_of_wandb_and_a_new_training_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", recorded)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        ap.train(RUNS, Watched(6, stop), tmp_path / "out", settings(9), checkpoint_seconds=0, sinks=["wandb"])
    saes = ap.train(RUNS, source(), tmp_path / "out", settings(9), sinks=["wandb"])
    shutil.rmtree(tmp_path / "out")
    ap.train(RUNS, source(), tmp_path / "out", settings(9), sinks=["wandb"])
    ids = [one["id"] for one in recorded.begun]
    assert [one["name"] for one in recorded.begun] == ["a", "b"] * 3
    assert ids[:2] == ids[2:4] and len(set(ids)) == 4
    for one in recorded.begun:
        run = RUNS[one["name"]]
        assert one["config"]["lr"]["peak"] == run.lr.peak and one["config"]["sae"]["d_sae"] == 64
        assert one["config"]["train"]["batch_size"] == 64 and one["config"]["source"] == source().describe()
        assert recorded.steps[one["id"]] == [0, 3, 6, 8]
        assert recorded.ends[one["id"]]["end"]["calibration"] == saes[one["name"]].metadata["calibration"]
        assert "config" not in recorded.ends[one["id"]]["end"]["training"]


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file, which is a LevelDB log with a head of seven bytes."""
    data, at, block, held = path.read_bytes(), 7, 32768, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = data[at + 7 : at + 7 + length], at + 7 + length
        held = part if kind in (1, 2) else held + part
        if kind in (1, 4):
            yield held


def test_wandb_itself_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ap.train({"a": RUNS["a"]}, source(), tmp_path, settings(6), sinks=["wandb"])
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = [Record.FromString(data) for data in wandb_records(file)]
    given = {
        update.key: json.loads(update.value_json)
        for one in found
        if one.HasField("run")
        for update in one.run.config.update
    }
    assert given["sae"]["d_sae"] == 64 and given["train"]["batch_size"] == 64
    assert sum(one.HasField("history") for one in found) == 3
    assert any(update.key == "end" for one in found for update in one.summary.update)


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
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(InvalidCheckpoint, match=r"line \d, does not match its checksum"):
            JsonLines(path, len(data))
