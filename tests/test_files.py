"""Files: what is replaced, what is refused, and what reading never waits for."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

import apportion as ap
from apportion.activations import StoreSource, iter_documents
from apportion.activations.files import Folder
from apportion.complexity import load_scores
from apportion.complexity.answers import kept_answers
from apportion.errors import ApportionError, StorageFailure
from apportion.files import from_json, locked, names_in_folder, what_is, write_atomically
from apportion.training.log import JsonLines


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "page", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "far" / "new")
    write_atomically({link: b"new", dangling: b"made"})
    Folder(tmp_path).write("link", lambda file: file.write(b"newer"))
    assert link.is_symlink() and dangling.is_symlink()
    assert target.read_bytes() == b"newer" and (tmp_path / "far" / "new").read_bytes() == b"made"
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["new", "page"]


@pytest.mark.parametrize("name", ["pipe", "link to a pipe", "folder"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    kind = "a folder" if name == "folder" else "a named pipe"
    with pytest.raises(StorageFailure, match=f"it is {kind}, expected a file"):
        write_atomically({tmp_path / name: b"x"})
    with pytest.raises(StorageFailure, match=f"it is {kind}, expected a file"):
        Folder(tmp_path).write(name, lambda file: file.write(b"x"))
    assert sorted(tmp_path.iterdir()) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_a_planted_link_points_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    for temporary in (".tmp-page", ".page.tmp"):
        (tmp_path / temporary).symlink_to(tmp_path / "precious")
    write_atomically({tmp_path / "page": b"one"})
    Folder(tmp_path).write("page", lambda file: file.write(b"two"))
    assert (tmp_path / "precious").read_bytes() == b"precious" and (tmp_path / "page").read_bytes() == b"two"


def test_a_pipe_in_place_of_an_input_is_refused_at_once(tmp_path: Path) -> None:
    names = (
        "sae.json",
        "manifest.json",
        "scores.jsonl",
        "text.txt",
        "lines.jsonl",
        "lines.jsonl.gz",
        "table.csv",
    )
    for name in names:
        os.mkfifo(tmp_path / name)
    reads = (
        lambda: ap.load(tmp_path),
        lambda: StoreSource(tmp_path),
        lambda: load_scores(tmp_path / "scores.jsonl"),
        lambda: load_scores("/dev/zero"),
        *(lambda name=name: list(iter_documents(tmp_path / name)) for name in names[3:]),
    )
    for read in reads:
        with pytest.raises(ApportionError, match=r"named pipe|a pipe or a device|a device"):
            read()


def test_nothing_is_appended_to_a_pipe_or_a_device(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(StorageFailure, match="it is a device, expected a file"), kept_answers(tmp_path):
        pass
    with pytest.raises(StorageFailure, match="it is a named pipe, expected a file"):
        JsonLines(tmp_path / "log.jsonl")


def test_names_that_no_file_can_have_are_not_there(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for name in (tmp_path / ("x" * 300), tmp_path / "a\0b", loop, tmp_path / "none" / "deeper"):
        assert what_is(name) is None and names_in_folder(name) == []
        with pytest.raises(ApportionError):
            ap.load(name)
        with pytest.raises(ApportionError):
            StoreSource(name)
        with pytest.raises(StorageFailure):
            write_atomically({name / "deeper": b""})
    with pytest.raises(ApportionError, match="use a local path"):
        StoreSource("~nobody-of-this-name/store")


def test_what_may_not_be_looked_at_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(StorageFailure, match=r"cannot read the folder .*: Permission denied"):
        names_in_folder(tmp_path)
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(StorageFailure, match=r"cannot look at .*: Permission denied"):
        what_is(tmp_path)


def test_where_nothing_may_be_written_no_lock_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def read_only(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    with locked(tmp_path, "training in"):
        assert list(tmp_path.iterdir()) == []
    os.close(opened(tmp_path / ".lock", os.O_CREAT))  # by someone who may write
    with locked(tmp_path, "training in"):
        again = locked(tmp_path, "training in")
        with pytest.raises(StorageFailure, match="another process is training in"):
            again.__enter__()


def test_json_has_a_depth(tmp_path: Path) -> None:
    assert from_json("[" * 100 + "]" * 100)
    for text in ("[" * 101 + "]" * 101, '{"a":' * 200_000 + "1" + "}" * 200_000):
        with pytest.raises(ValueError, match="nested deeper than 100 levels"):
            from_json(text)
    for name in ("sae.json", "manifest.json"):
        (tmp_path / name).write_text("[" * 200_000)
    for read in (ap.load, StoreSource):
        with pytest.raises(ApportionError, match="nested deeper"):
            read(tmp_path)
    (tmp_path / "sae.json").write_text(json.dumps({"format": "apportion-sae", "version": True}))
    with pytest.raises(ApportionError, match="version True"):
        ap.load(tmp_path)
