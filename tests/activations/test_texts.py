"""Documents: every source gives the same documents, every unusable one a sentence."""

from __future__ import annotations

import gzip
import json
import re
import time
from dataclasses import replace

import pytest

from apportion.activations import installed_text, iter_documents, load_documents, tables
from apportion.activations.records import LONGEST, PART
from apportion.activations.texts import Document, Paths
from apportion.errors import ApportionWarning, InvalidInput, StorageFailure, UnknownName

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
    documents = iter_documents(path, strict=True)
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
    path = write_lines(tmp_path / "d.jsonl", [RECORDS[0], record])
    with pytest.raises(InvalidInput, match=message):
        load_documents(path, target_field="ease", strict=True)
    with pytest.warns(
        ApportionWarning, match=rf"1 record of the data was left out: .* \(1, first: {path}, line 2"
    ):
        assert load_documents(path, target_field="ease") == EXPECTED[:1]


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


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    lines = ['{"text": "one"}', '{"text": null}', "", '{"text": ""}', "{broken", '{"text": "a\\u0000"}', "[1]"]
    (tmp_path / "d.jsonl").write_text("\n".join([*lines, '{"text": "two", "id": null}', '{"text": 7}']) + "\n")
    found = iter_documents(tmp_path / "d.jsonl")
    assert list(found) == [Document("0", "one"), Document("7", "two")]
    counts = {"no text in field 'text'": 2, "blank": 1, "not JSON": 1, "binary": 1, "no object": 1}
    assert found.left_out.counts() == counts
    assert found.left_out.counts(2) == counts | {"no text in field 'text'": 1}
    assert found.left_out.counts(1) == {}
    with pytest.warns(
        ApportionWarning, match=r"6 records of the data were left out: .*blank \(1, first: .*line 4\)"
    ):
        found.left_out.tell()


def test_empty_cells_and_nulls_of_tables(tmp_path):
    datasets = pytest.importorskip("datasets")
    records = {"id": ["a", "b", None, "d"], "text": ["one", None, "three", ""], "ease": [1.0, 2.0, None, 4.0]}
    table = datasets.Dataset.from_dict(records)
    table.to_parquet(tmp_path / "d.parquet")
    table.to_csv(tmp_path / "d.csv")
    for name in ("d.parquet", "d.csv"):
        found = iter_documents(tmp_path / name)
        assert list(found) == [Document("a", "one"), Document("2", "three")]
        assert sum(found.left_out.counts().values()) == 2
        with pytest.raises(InvalidInput, match=r"record 1, has no text in field 'text'"):
            load_documents(tmp_path / name, strict=True)
        rated = iter_documents(tmp_path / name, target_field="ease")
        assert list(rated) == [Document("a", "one", 1.0)]
        assert rated.left_out.counts()["no finite number in field 'ease'"] == 1


def test_a_binary_file_of_a_folder_is_left_out_and_one_alone_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 noir")
    with pytest.warns(ApportionWarning, match=r"left out: binary \(1, first: .*b\.txt\)"):
        assert load_documents(tmp_path) == [Document("a", "words")]
    with pytest.raises(InvalidInput, match=r"b\.txt is binary: byte 3 is not UTF-8"):
        load_documents(tmp_path / "b.txt")


def test_data_without_one_usable_record_is_given_up_early(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"body": "words"}\n' * 5000)
    with pytest.raises(
        InvalidInput, match=r"none of the first 1,000 records .*no text in field 'text' \(its fields: body"
    ):
        load_documents(tmp_path / "d.jsonl")
    assert len(load_documents(tmp_path / "d.jsonl", text_field="body", limit=7)) == 7


SENTENCES = "It was said, and said again. Nobody knew why.\n"


def test_a_long_document_becomes_parts_and_a_shorter_one_does_not(tmp_path):
    short, long = SENTENCES * 1424, SENTENCES * 1425
    assert len(short) <= LONGEST < len(long)
    (tmp_path / "book.txt").write_text(long)
    parts = load_documents(tmp_path / "book.txt")
    assert [d.id for d in parts] == [f"book#{n}" for n in range(1, len(parts) + 1)]
    assert "".join(d.text for d in parts) == long and len(parts) >= len(long) // PART - 1
    assert all(PART // 2 < len(d.text) <= 3 * PART // 2 and d.text.endswith("\n") for d in parts)
    assert load_documents(tmp_path / "book.txt", whole=True) == [Document("book", long)]
    path = write_lines(tmp_path / "d.jsonl", [{"id": "x", "text": short, "ease": 1}, {"text": long, "ease": 2}])
    found = load_documents(path, target_field="ease")
    assert found[0] == Document("x", short, 1.0)
    assert found[1:] == [Document(d.id.replace("book", "1"), d.text, 2.0) for d in parts]
    assert load_documents([short, long]) == [Document("0", short), *(replace(d, target=None) for d in found[1:])]


@pytest.mark.parametrize("text", ["好" * 70_000, "x" * 70_000, "a b\n" * 30_000 + "\n" * 40_000, "🙂 " * 40_000])
def test_parts_of_any_text_are_the_text(tmp_path, text):
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    found = load_documents(tmp_path / "t.txt")
    assert "".join(d.text for d in found).rstrip() == text.rstrip()
    assert all(len(d.text) <= 3 * PART // 2 for d in found) and len({d.id for d in found}) == len(found) > 4


def test_a_broken_part_of_a_long_file_is_left_out_alone(tmp_path):
    data = bytearray((SENTENCES * 2000).encode())
    data[40_000] = 0xE9
    (tmp_path / "t.txt").write_bytes(data)
    found = iter_documents(tmp_path / "t.txt")
    assert len(list(found)) >= 8 and found.left_out.counts() == {"binary": 1}
    assert re.search(r"t\.txt, part 5, is binary: byte \d+ is not UTF-8", str(found.left_out.first["binary"]))


def test_several_files_and_patterns(tmp_path):
    for name, ids in (("b", [1, 2]), ("a", [2, None]), ("c", [None, 3])):
        records = [{"id": i, "text": f"{name}{n}"} for n, i in enumerate(ids)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    by_name = [("2", "a0"), ("a:1", "a1"), ("1", "b0"), ("b:2", "b1"), ("c:0", "c0"), ("3", "c1")]
    for data in (f"{tmp_path}/*.jsonl", f"{tmp_path}/[abc].jsonl", [tmp_path / f"{n}.jsonl" for n in "abc"]):
        assert [(d.id, d.text) for d in load_documents(data)] == by_name
    given = Paths((f"{tmp_path}/b.jsonl", f"{tmp_path}/a.jsonl"))
    assert [(d.id, d.text) for d in load_documents(given)] == [
        ("1", "b0"),
        ("2", "b1"),
        ("a:2", "a0"),
        ("a:1", "a1"),
    ]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.txt").write_text("one")
    (tmp_path / "a.txt").write_text("two")
    both = load_documents([tmp_path / "a.txt", tmp_path / "c" / "a.txt"])
    assert [d.id for d in both] == ["a", "c/a.txt:a"]
    assert load_documents(Paths((str(tmp_path / "a.txt"),))) == [Document("a", "two")]
    with pytest.raises(StorageFailure, match=r"no file matches .*\*\.csv"):
        load_documents(f"{tmp_path}/*.csv")


def test_patterns_on_other_file_systems():
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in ("q", "p"):
        fs.pipe(f"/many/{name}.jsonl", json.dumps({"text": name}).encode())
    assert load_documents("memory://many/*.jsonl") == [Document("p:0", "p"), Document("q:0", "q")]


def test_tables_are_read_where_they_lie_and_hub_data_on_request(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    real = datasets.load_dataset

    def load(*args, **options):
        asked.append(options.get("streaming"))
        return real(*args, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(RECORDS).to_parquet(tmp_path / "set" / "train.parquet")
    for data in (tmp_path / "set" / "train.parquet", f"{tmp_path}/set", f"{tmp_path}/set/*.parquet@train"):
        assert [d.text for d in load_documents(data, target_field="ease", limit=1)] == ["first text"]
    assert asked == [True, True, True]
    builder = datasets.load_dataset("parquet", data_files=str(tmp_path / "set" / "train.parquet"), streaming=True)
    monkeypatch.setattr(tables, "ask_hub", lambda name, kind: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, streaming, **_: asked.append(streaming) or builder)
    for streaming in (False, True):
        assert load_documents("owner/data@train", target_field="ease", streaming=streaming) == EXPECTED
    assert asked[-2:] == [False, True]


def test_a_table_that_breaks_half_way_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(RECORDS * 500).to_parquet(tmp_path / "d.parquet", batch_size=100)
    data = bytearray((tmp_path / "d.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    (tmp_path / "d.parquet").write_bytes(data)
    with pytest.raises(InvalidInput, match=r"d\.parquet is no parquet file with a record per row"):
        load_documents(tmp_path / "d.parquet")
