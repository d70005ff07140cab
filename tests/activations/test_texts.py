"""Documents: every source gives the same documents, every unusable one a sentence."""

from __future__ import annotations

import gzip
import json

import pytest

from apportion.activations import installed_text, load_documents
from apportion.activations.texts import Document
from apportion.errors import InvalidInput, StorageFailure, UnknownName

RECORDS = [{"id": "a", "text": "first text", "ease": 1}, {"id": "b", "text": "second text", "ease": -0.5}]
EXPECTED = [Document("a", "first text", 1.0), Document("b", "second text", -0.5)]


def write_lines(path, records):
    data = "\n".join(json.dumps(record) for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_json_lines(tmp_path, name):
    assert load_documents(write_lines(tmp_path / name, RECORDS), target_field="ease") == EXPECTED


def test_list_text_file_and_folder(tmp_path):
    assert load_documents(["x y", " ", "z"]) == [Document("0", "x y"), Document("2", "z")]
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    assert load_documents(tmp_path / "b.txt") == [Document("b", "second")]
    assert load_documents(tmp_path) == [Document("a", "first"), Document("b", "second")]
    assert len(load_documents(tmp_path, limit=1)) == 1


def test_memory_file_system():
    import fsspec

    fsspec.filesystem("memory").pipe("/texts/d.jsonl", json.dumps(RECORDS[0]).encode())
    assert load_documents("memory://texts/d.jsonl", target_field="ease") == EXPECTED[:1]


def test_hugging_face_data(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(RECORDS)
    table.save_to_disk(tmp_path / "saved")
    assert load_documents(str(tmp_path / "saved"), target_field="ease") == EXPECTED
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    assert load_documents(f"{tmp_path / 'parquet'}@train", target_field="ease") == EXPECTED
    with pytest.raises(UnknownName, match="nosplit"):
        load_documents(f"{tmp_path / 'parquet'}@nosplit")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "line 2, is a list"),
        ({"body": "x", "id": 3}, r"line 2, has no text in field 'text' \(its fields: body, id\)"),
        ({"text": "x", "ease": "high"}, "line 2, has 'high' as target 'ease'"),
        ({"text": "x", "ease": float("nan")}, "line 2, has nan as target"),
        ({"text": "x"}, "line 2, has None as target"),
        ({"text": "x\0y", "ease": 1}, "line 2, is binary"),
    ],
)
def test_unusable_lines(tmp_path, record, message):
    with pytest.raises(InvalidInput, match=message):
        load_documents(write_lines(tmp_path / "d.jsonl", [RECORDS[0], record]), target_field="ease")


def test_unusable_files(tmp_path):
    cases = {
        "latin.txt": b"caf\xe9",
        "nul.txt": b"a\0b",
        "empty.txt": b"  \n",
        "d.jsonl": b"{",
        "d.jsonl.gz": b"no",
    }
    messages = ["not UTF-8", "NUL", "no text", "line 1, is not JSON", "gzip"]
    for (name, data), message in zip(cases.items(), messages, strict=True):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInput, match=message):
            load_documents(tmp_path / name)
    with pytest.raises(InvalidInput, match="no text"):
        load_documents([])
    with pytest.raises(StorageFailure, match=r"absent\.txt"):
        load_documents(tmp_path / "absent.txt")


def test_installed_text_is_real_and_in_order():
    found = installed_text()
    by_id = {document.id: document.text for document in found}
    assert len(by_id) == len(found) > 300
    assert "handler" in by_id["topic:try"] and "JSON" in by_id["module:json"]
    assert [document.id for document in found] == sorted(by_id)
