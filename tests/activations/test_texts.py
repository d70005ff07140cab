"""Documents: every source gives the same documents, every unusable one a sentence."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from apportion.activations import installed_text, iter_documents, load_documents
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

    with pytest.raises(UnknownName, match=r"no split 'nosplit'; choose one of: 'train'"):
        load_documents(f"{tmp_path / 'parquet'}@nosplit")
    with pytest.raises(UnknownName, match=r"no split 'train'; choose one of: none"):
        load_documents(f"{tmp_path / 'saved'}@train")


def test_tables_in_files_of_any_name(tmp_path, capfd):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(RECORDS)
    folder = tmp_path / "a@b:c [1]"
    folder.mkdir()
    table.to_parquet(folder / "d@train:x.parquet")
    table.to_json(folder / "d.json")
    table.to_csv(folder / "d.csv")
    capfd.readouterr()
    shown = datasets.are_progress_bars_disabled()
    for name in ("d@train:x.parquet", "d.json", "d.csv", "d.csv@train"):
        assert load_documents(folder / name, target_field="ease") == EXPECTED
    assert datasets.are_progress_bars_disabled() == shown and capfd.readouterr().err == ""
    with pytest.raises(UnknownName, match=r"no split 'test'; choose one of: 'train'"):
        load_documents(f"{folder / 'd.csv'}@test")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match="no parquet file"):
        load_documents(folder / "broken.parquet")
    (tmp_path / "c@d").mkdir()
    (tmp_path / "c@d" / "a.txt").write_text("text")
    assert load_documents(tmp_path / "c@d") == [Document("a", "text")]


def test_a_path_that_is_not_there_is_named_without_asking_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked the hub"))
    names = [tmp_path / "absent", f"{tmp_path}/absent@train", "./absent", "~/absent-data", "absent.parquet"]
    for name in (*names, "absent.csv@train", "tests/absent", "absent.jsonl.gz", "absent.txt"):
        with pytest.raises(StorageFailure, match=r"absent"):
            load_documents(name)


def test_a_dataset_that_the_hub_does_not_have_is_named_quickly():
    pytest.importorskip("datasets")
    begun = time.monotonic()
    with pytest.raises(UnknownName, match=r"the dataset 'nosuch/dataset' is neither on this machine nor"):
        load_documents("nosuch/dataset:config@train")
    assert time.monotonic() - begun < 10


def test_documents_are_read_one_by_one(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3)) + "{broken")
    documents = iter_documents(path)
    assert [next(documents).text for _ in range(3)] == ["text 0", "text 1", "text 2"]
    with pytest.raises(InvalidInput, match="line 4"):
        next(documents)
    assert len(load_documents(path, limit=3)) == 3


def test_damaged_gzip(tmp_path):
    raw = "".join(json.dumps({"text": f"text number {i} {i * i}"}) + "\n" for i in range(500)).encode()
    data = gzip.compress(raw)
    path = tmp_path / "d.jsonl.gz"
    kinds = set()
    for at in range(12, len(data), 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        with pytest.raises(InvalidInput) as caught:
            load_documents(path)
        kinds.add("gzip" in str(caught.value))
    assert True in kinds
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidInput, match="no whole gzip file"):
        load_documents(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "line 2, is a list"),
        ({"body": "x", "id": 3}, r"line 2, has no text in field 'text' \(its fields: body, id\)"),
        ({"text": "x", "ease": "high"}, "line 2, has 'high' as target 'ease'"),
        ({"text": "x", "ease": float("nan")}, "line 2, has nan as target"),
        ({"text": "x"}, "line 2, has None as target"),
        ({"text": "x\0y", "ease": 1}, "line 2, is binary"),
        ({"text": "x", "ease": 1e39}, "line 2, has 1e\\+39 as target .* within float32"),
        ({"text": "x", "ease": 10**400}, "line 2, has 1000.* as target .* within float32"),
        ({"text": "x", "ease": True}, "line 2, has True as target"),
        ({"text": "x\ud800", "ease": 1}, "line 2, holds half a character"),
        ({"id": "\udfff", "text": "x", "ease": 1}, "line 2, by its field 'id', holds half a character"),
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


def test_a_local_file_of_no_known_kind_is_refused_without_asking_the_hub(tmp_path, monkeypatch):
    import datasets

    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    page = tmp_path / "README.md"
    page.write_text("some words")
    with pytest.raises(InvalidInput, match=r"README\.md is a file whose kind"):
        load_documents(str(page))
