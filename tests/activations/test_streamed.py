"""Training on a model that runs meanwhile, over documents that are read as they are needed."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

import apportion as ap
from apportion.activations import StoreSource, StreamedSource, capture_to_store
from apportion.activations.splits import in_part, parts_of
from apportion.cli import main
from apportion.errors import InvalidConfig, InvalidInput

from .conftest import LAYER, shared


@pytest.fixture
def made(tiny, documents, tmp_path):
    def make(texts=documents[:80], folder=tmp_path / "heldout", **changed):
        given = {"context": 64, "heldout": 0.4, "heldout_rows": 1500, "buffer_rows": 1024} | changed
        return StreamedSource(tiny, LAYER, lambda: iter(texts), folder, **given)

    return make


def rows_of(stream, n):
    found = torch.cat([next(stream).x for _ in range(n)])
    stream.close()
    return found


def test_parts_are_those_of_a_store_of_the_same_documents(made, tiny, documents, tmp_path):
    source = made()
    capture_to_store(tiny, LAYER, documents[:80], tmp_path / "all", context=64)
    whole = StoreSource(tmp_path / "all", heldout=0.4)
    for split in ("calibrate", "evaluate"):
        own = torch.cat([batch.x for batch in source.blocks(split)])
        theirs = torch.cat([batch.x for batch in whole.blocks(split)])[: len(own)]
        assert len(own) > 300 and torch.allclose(own, theirs, rtol=1e-4, atol=1e-4)
    assert source.heldout.manifest.rows == 1500 and source.heldout.n_train == 0
    assert source.describe()["kind"] == "streamed"
    kept = sum(contexts.rows for contexts in source.contexts("evaluate"))
    assert kept == sum(len(batch.x) for batch in source.blocks("evaluate"))


def test_an_epoch_brings_every_training_row_once_shuffled_by_the_seed(made, tiny, documents, tmp_path):
    capture_to_store(tiny, LAYER, documents[:80], tmp_path / "all", context=64)
    whole = StoreSource(tmp_path / "all", heldout=0.4)
    n = whole.n_train
    source = made()
    first, again, other = (rows_of(source.stream(n, seed), 1) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    stored = rows_of(whole.stream(n, 0), 1)
    sums = [sorted(x.double().sum(1).tolist()) for x in (first, other, stored)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-3) and sums[0] == pytest.approx(sums[2], abs=0.05)


def test_a_stream_goes_on_where_its_state_says(made):
    source = made()
    straight = source.stream(200, 3)
    batches = [next(straight).x for _ in range(30)]  # into the second epoch
    straight.close()
    for cut in (1, 7, 19, 26):
        begun = source.stream(200, 3)
        for _ in range(cut):
            next(begun)
        state = json.loads(json.dumps(begun.state()))
        begun.close()
        resumed = made().stream(200, 3, state)
        assert all(torch.equal(next(resumed).x, batch) for batch in islice(batches, cut, None))
        resumed.close()


def test_documents_are_read_as_they_are_needed(tiny, documents, tmp_path):
    read = []

    def reading():
        for document in documents[:200]:
            read.append(document.id)
            yield document

    source = StreamedSource(
        tiny, LAYER, reading, tmp_path, context=64, heldout=0.4, heldout_rows=500, buffer_rows=256
    )
    assert len(read) < 100
    read.clear()
    stream = source.stream(64, 0)
    next(stream)
    stream.close()
    assert len(read) < 100


def test_less_data_than_a_resume_has_read_is_refused(made, documents, tmp_path):
    stream = made().stream(200, 0)
    for _ in range(8):
        next(stream)
    state = stream.state()
    stream.close()
    trained = in_part(parts_of([document.id for document in documents[:80]], 0.4, 0), "train")
    assert state["at"] <= trained.sum()
    fewer = made(documents[:80])  # the same held-out store, and then fewer documents
    fewer._pools.args[2]._documents = lambda: iter(documents[:3])
    short = fewer.stream(200, 0, state)
    with pytest.raises(InvalidInput, match="were read before; resume with the same data"):
        next(short)
    short.close()
    for wrong in ({"buffer_rows": 0}, {"heldout": 0.0}):
        with pytest.raises(InvalidConfig, match="buffer_rows"):
            made(**wrong)


def test_the_command_trains_live_resumes_and_evaluates(tmp_path, capsys, monkeypatch):
    model, data = str(shared("models/tiny-lm")), str(shared("data/text_eval.jsonl.gz"))
    given = ["--model", model, "--module", LAYER, "--data", data, "--context", "64", "--heldout-rows", "3000"]
    given += ["--recipe", "topk,mutual_choice", "--k", "4", "--d-sae", "128", "--tokens", "16384"]
    given += ["--batch", "512", "--buffer-rows", "2048", "--checkpoint-seconds", "0"]
    assert main(["train", "--out", str(tmp_path / "whole"), *given]) == 0
    real = ap.training.trainer._Session._one_step

    def stopped(self, batch):
        if self.step == 20:
            raise KeyboardInterrupt
        real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ap.training.trainer._Session, "_one_step", stopped)
        assert main(["train", "--out", str(tmp_path / "cut"), *given]) == 130
    assert main(["train", "--out", str(tmp_path / "cut"), *given]) == 0
    for run in ("topk-k4", "mutual_choice-k4"):
        whole, cut = ((tmp_path / name / run / "sae.safetensors").read_bytes() for name in ("whole", "cut"))
        assert whole == cut
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "cut"), "--data", str(tmp_path / "cut" / "heldout"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["mutual_choice-k4", "topk-k4"] and all(row["fvu"] < 1 for row in rows)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--model", "m"], "--model, --module and --data"),
        ([], "--model, --module and --data"),
        (["store", "--model", "m"], "leave one out"),
        (["--model", "m", "--module", "x", "--data", "d.txt", "--last-only"], "read a store"),
    ],
)
def test_half_of_the_options_are_refused_in_a_sentence(given, said, tmp_path, capsys):
    assert main(["train", *given, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
