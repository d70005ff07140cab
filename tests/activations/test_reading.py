"""Reading a store: any damage is found before a row is handed out, wherever the store lies."""

from __future__ import annotations

import itertools
import json
import shutil

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from apportion.activations import StoreSource, capture_to_store
from apportion.activations.capture import capture
from apportion.activations.manifest import MANIFEST, PROGRESS
from apportion.errors import CorruptStore, InvalidInput, NonFiniteActivations, StorageFailure, UnknownName
from apportion.files import seal

from .conftest import LAYER

SHARD = "shard-00001.safetensors"


@pytest.fixture
def copy(store, tmp_path):
    return shutil.copytree(store, tmp_path / "copy")


def edit_manifest(folder, **changes):
    """Changes as a buggy release would write them: under a checksum that holds."""
    data = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(seal({**data, **changes}, folder / MANIFEST)))


@pytest.mark.parametrize("at", [3, 100, 200_000, -1])
def test_a_flipped_bit(copy, at):
    data = bytearray((copy / SHARD).read_bytes())
    data[at] ^= 1
    (copy / SHARD).write_bytes(data)
    with pytest.raises(CorruptStore, match=f"{SHARD}.*SHA-256"):
        StoreSource(copy)


def test_a_truncated_or_missing_shard(copy):
    data = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(data[:-1])
    with pytest.raises(CorruptStore, match=f"{SHARD}.*{len(data) - 1} bytes"):
        StoreSource(copy, verify=False)
    (copy / SHARD).unlink()
    with pytest.raises(CorruptStore, match=f"{SHARD}.*missing"):
        StoreSource(copy, verify=False)


def test_a_damaged_header_without_verification(copy):
    data = bytearray((copy / SHARD).read_bytes())
    data[0:8] = (2**40).to_bytes(8, "little")
    (copy / SHARD).write_bytes(data)
    with pytest.raises(CorruptStore, match=f"{SHARD}.*header"):
        StoreSource(copy, verify=False)


def test_manifests_that_cannot_be_used(copy, tmp_path):
    with pytest.raises(StorageFailure, match="no store"):
        StoreSource(tmp_path / "nothing")
    edit_manifest(copy, version=2, surprise=1)
    with pytest.raises(InvalidInput, match=r"version 2 .* up to 1; upgrade"):
        StoreSource(copy)
    for version in (0, -1, True, "1"):
        edit_manifest(copy, version=version)
        with pytest.raises(InvalidInput, match=f"version {version!r}"):
            StoreSource(copy)
    edit_manifest(copy, version=1)
    with pytest.raises(CorruptStore, match="surprise"):
        StoreSource(copy)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(CorruptStore, match="not JSON"):
        StoreSource(copy)
    (copy / MANIFEST).rename(copy / PROGRESS)
    with pytest.raises(CorruptStore, match="unfinished"):
        StoreSource(copy)


@pytest.mark.parametrize("name", [MANIFEST, PROGRESS])
def test_a_description_that_was_changed_breaks_its_seal(copy, tiny, documents, name):
    text = (copy / MANIFEST).read_text()
    shards = json.loads(text)["shards"]
    if name == PROGRESS:
        (copy / MANIFEST).rename(copy / PROGRESS)
    places = [text.index(f'"rows": {shards[1]["rows"]}') + 8, text.index('"first_document"') + 18, len(text) // 2]
    for at in places:
        digit = str((int(text[at]) + 1) % 10) if text[at].isdigit() else "1"
        (copy / name).write_text(text[:at] + digit + text[at + 1 :])
        with pytest.raises(CorruptStore, match=rf"{name} (does not match its checksum|is not JSON)"):
            if name == MANIFEST:
                StoreSource(copy)
            else:
                capture_to_store(tiny, LAYER, documents, copy, shard_rows=4096, context=64)
    unsealed = {key: value for key, value in json.loads(text).items() if key != "checksum"}
    (copy / MANIFEST).write_text(json.dumps(unsealed))
    with pytest.raises(CorruptStore, match="checksum"):
        StoreSource(copy)


def test_a_manifest_that_does_not_fit_its_shards(copy):
    good = json.loads((copy / MANIFEST).read_text())
    shards = good["shards"]
    for change in ({"rows": shards[1]["rows"] - 1}, {"rows": 10**12}, {"first_document": -1}, {"documents": 1}):
        edit_manifest(copy, shards=[shards[0], {**shards[1], **change}, *shards[2:]])
        with pytest.raises(CorruptStore, match=SHARD):
            StoreSource(copy)
    edit_manifest(copy, shards=shards, modules={LAYER: 255})
    with pytest.raises(CorruptStore, match=r"shape \(\d+, 256\) and should have \(\d+, 255\)"):
        StoreSource(copy)
    edit_manifest(copy, modules=good["modules"], documents=3)
    with pytest.raises(CorruptStore, match="of 3"):
        StoreSource(copy)


def test_a_row_that_is_not_finite_is_named(copy):
    tensors = load_file(copy / SHARD)
    names = json.dumps([""] * len(tensors["document_rows"]))
    tensors[f"activations/{LAYER}"][7, 3] = float("nan")
    save_file(tensors, copy / SHARD, {"documents": names})
    entries = json.loads((copy / MANIFEST).read_text())["shards"]
    entries[1]["bytes"] = (copy / SHARD).stat().st_size
    edit_manifest(copy, shards=entries)
    source = StoreSource(copy, heldout=0.0, verify=False)
    stream = source.stream(source.n_train, seed=0)
    for _ in range(2):
        with pytest.raises(NonFiniteActivations, match=f"row 7 of shard .*{SHARD}"):
            next(stream)
    stream.close()


def test_unknown_module(store):
    with pytest.raises(UnknownName, match=f"'{LAYER}'"):
        StoreSource(store, "gpt_neox.layer.1")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_and_place_reads_the_same(tiny, documents, tmp_path, dtype):
    options = {"dtype": dtype, "shard_rows": 512, "context": 64}
    url = f"memory://stores/{dtype}"
    capture_to_store(tiny, [LAYER, "gpt_neox.layers.0"], documents[:30], tmp_path, **options)
    capture_to_store(tiny, [LAYER, "gpt_neox.layers.0"], documents[:30], url, **options)
    fs = fsspec.filesystem("memory")
    assert {path.rsplit("/", 1)[-1] for path in fs.ls(f"/stores/{dtype}", detail=False)} == {
        path.name for path in tmp_path.iterdir() if path.name != ".lock"
    }
    with pytest.raises(UnknownName, match="several modules"):
        StoreSource(url)
    near, far = (StoreSource(place, LAYER, buffer_rows=700) for place in (tmp_path, url))
    streams = near.stream(300, 0), far.stream(300, 0)
    for a, b in itertools.islice(zip(*streams, strict=True), 5):
        assert torch.equal(a.x, b.x) and torch.equal(a.target, b.target) and torch.equal(a.document, b.document)
        stored = getattr(torch, dtype)
        assert torch.equal(a.x, a.x.to(stored).float())
    for stream in streams:
        stream.close()
    blocks = [torch.cat([block.x for block in source.blocks("evaluate")]) for source in (near, far)]
    assert torch.equal(*blocks)


def test_max_rows_uses_the_first_rows(store):
    whole, part = StoreSource(store), StoreSource(store, max_rows=5000)
    rows = torch.cat([block.x for block in part.blocks("evaluate")])
    assert torch.equal(rows, torch.cat([block.x for block in whole.blocks("evaluate")])[: len(rows)])
    assert part.n_train + sum(len(b.x) for s in ("calibrate", "evaluate") for b in part.blocks(s)) == 5000


def test_contexts_of_a_part_give_its_rows_again(source, tiny):
    found = list(source.contexts("evaluate", batch_size=8))
    rows = [capture(tiny.model, [LAYER], c.inputs())[LAYER][c.keep] for c in found]
    blocks = list(source.blocks("evaluate"))
    torch.testing.assert_close(torch.cat(rows), torch.cat([b.x for b in blocks]), rtol=1e-3, atol=1e-3)
    document = torch.cat([b.document for b in blocks])
    position = torch.cat([b.position for b in blocks])
    kept = torch.cat([c.keep.sum(1) for c in found])
    firsts = kept.cumsum(0) - kept
    assert torch.equal(document[firsts], torch.cat([c.document for c in found]))
    assert torch.equal(position[firsts], torch.cat([c.start for c in found]))
    limited = list(source.contexts("evaluate", batch_size=8, limit_rows=100))
    assert 100 <= sum(c.rows for c in limited) < 100 + 64


@pytest.mark.parametrize("rows", [5000, 5001, 5555])
def test_contexts_of_the_first_rows_keep_just_these(store, rows):
    part = StoreSource(store, max_rows=rows)
    for split in ("calibrate", "evaluate"):
        blocks, found = list(part.blocks(split)), list(part.contexts(split, 8))
        assert sum(len(b.x) for b in blocks) == sum(c.rows for c in found)
        counts = torch.cat([c.keep.sum(1) for c in found])
        documents = torch.cat([c.document for c in found]).repeat_interleave(counts)
        assert torch.equal(documents, torch.cat([b.document for b in blocks]))


def test_description_is_json(source):
    text = json.dumps(source.describe())
    assert LAYER in text and source.manifest.fingerprint in text


def test_the_bench_measures(tiny, documents):
    from apportion.bench.capture import bench_capture

    found = bench_capture(tiny, LAYER, documents, rows=1024, shard_rows=512, repeats=1, context=64)
    assert found["rows"] == 1024 and 0 < found["ratio"] < 2
    assert found["rows_per_s_read"] > 0
    json.dumps(found)


def test_shards_are_those_of_the_store_and_in_their_order(copy):
    shards = json.loads((copy / MANIFEST).read_text())["shards"]
    (copy.parent / "outside.safetensors").write_bytes((copy / shards[0]["file"]).read_bytes())
    for change, words in (
        (shards[::-1], "stands in the place of shard-00000"),
        ([shards[0], *shards], "stands in the place of shard-00001"),
        ([*shards[:1], *shards[2:]], "stands in the place of shard-00001"),
        (shards[:-1], "there are .* rows and should be"),
        ([{**shards[0], "file": "../outside.safetensors"}, *shards[1:]], "String should match pattern"),
        ([], "at least 1 item"),
    ):
        edit_manifest(copy, shards=change)
        with pytest.raises(CorruptStore, match=words):
            StoreSource(copy)
