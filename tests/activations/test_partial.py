"""A kill loses little, and a finished store can be made longer; both end with the bytes of one capture."""

from __future__ import annotations

import itertools

import pytest

from apportion.activations import StoreSource, capture_to_store
from apportion.activations import extract as extracting
from apportion.activations.files import Folder
from apportion.activations.manifest import MANIFEST, PROGRESS, Manifest, read_manifest, write_json
from apportion.activations.partial import PARTIAL
from apportion.errors import InvalidConfig

from .conftest import LAYER

SETTINGS = {"shard_rows": 1024, "context": 64, "batch_size": 4}


class Killed(Exception):
    pass


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def forwards(monkeypatch):
    """Counts forward passes; ``forwards.kill_at`` ends the process at one of them, as far as a test can."""

    class Forwards:
        kill_at = None
        n = 0

    seen, real = Forwards(), extracting.capture

    def counted(*given):
        seen.n += 1
        if seen.n == seen.kill_at:
            raise Killed
        return real(*given)

    monkeypatch.setattr(extracting, "capture", counted)
    monkeypatch.setattr("apportion.activations.partial.PIECE_SECONDS", 0.0)
    return seen


@pytest.mark.parametrize("kill_at", [3, 7, 11, 12, 20])
def test_batches_that_are_done_are_not_made_again(tiny, documents, tmp_path, forwards, kill_at):
    given = {**SETTINGS, "outliers": None}
    capture_to_store(tiny, LAYER, documents[:60], tmp_path / "whole", **given)
    whole, forwards.n, forwards.kill_at = forwards.n, 0, kill_at
    with pytest.raises(Killed):
        capture_to_store(tiny, LAYER, documents[:60], tmp_path / "broken", **given)
    forwards.n, forwards.kill_at = 0, None
    capture_to_store(tiny, LAYER, documents[:60], tmp_path / "broken", **given)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "broken")
    assert forwards.n == whole - (kill_at - 1)


def test_a_damaged_piece_is_made_again(tiny, documents, tmp_path, forwards):
    given = {**SETTINGS, "outliers": None}
    capture_to_store(tiny, LAYER, documents[:60], tmp_path / "whole", **given)
    for damage in ("partial.json", "partial-00000-00001.safetensors", None):
        folder = tmp_path / f"broken-{damage}"
        forwards.n, forwards.kill_at = 0, 5
        with pytest.raises(Killed):
            capture_to_store(tiny, LAYER, documents[:60], folder, **given)
        forwards.n, forwards.kill_at = 0, None
        if damage is None:
            (folder / "partial-00000-00000.safetensors").unlink()
        else:
            data = bytearray((folder / damage).read_bytes())
            data[len(data) // 2] ^= 255
            (folder / damage).write_bytes(data)
        capture_to_store(tiny, LAYER, documents[:60], folder, **given)
        left = {name: data for name, data in bytes_of(folder).items() if not name.startswith("partial")}
        assert left == bytes_of(tmp_path / "whole")
        assert not (folder / PARTIAL).exists()


@pytest.mark.parametrize("longer", [1500, 2500, None])
def test_a_finished_store_goes_on_to_the_bytes_of_one_capture(tiny, documents, tmp_path, longer):
    texts = documents[:60]
    capture_to_store(tiny, LAYER, texts, tmp_path / "whole", max_rows=longer, **SETTINGS)
    for rows in (700, 1400, longer):
        manifest = capture_to_store(tiny, LAYER, texts, tmp_path / "grown", max_rows=rows, **SETTINGS)
        assert rows is None or manifest.rows == rows == StoreSource(tmp_path / "grown").manifest.rows
    whole, grown = (bytes_of(tmp_path / name) for name in ("whole", "grown"))
    # The bound on norms is that of the first capture, which saw fewer rows.
    assert {k: v for k, v in whole.items() if k != MANIFEST} == {k: v for k, v in grown.items() if k != MANIFEST}
    first, then = (read_manifest(Folder(tmp_path / name)) for name in ("whole", "grown"))
    assert first.model_copy(update={"bounds": then.bounds}) == then
    with pytest.raises(InvalidConfig, match="max_rows was"):
        capture_to_store(tiny, LAYER, texts, tmp_path / "grown", max_rows=700, **SETTINGS)


def test_a_kill_while_a_store_is_made_longer_costs_nothing(tiny, documents, tmp_path, monkeypatch):
    texts = documents[:60]
    capture_to_store(tiny, LAYER, texts, tmp_path / "a", max_rows=1400, **SETTINGS)
    real = Folder.remove

    def killed(self, name):
        if name == MANIFEST:
            raise Killed
        real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", killed)
        with pytest.raises(Killed):
            capture_to_store(tiny, LAYER, texts, tmp_path / "a", max_rows=2000, **SETTINGS)
    assert (tmp_path / "a" / PROGRESS).exists()
    assert StoreSource(tmp_path / "a").manifest.rows == 1400  # still whole
    with pytest.raises(Killed):  # and now in the middle of it
        cut = itertools.chain(texts[:20], iter(lambda: (_ for _ in ()).throw(Killed()), None))
        capture_to_store(tiny, LAYER, cut, tmp_path / "a", max_rows=2000, **SETTINGS)
    assert capture_to_store(tiny, LAYER, texts, tmp_path / "a", max_rows=2000, **SETTINGS).rows == 2000


def test_a_store_of_before_that_cannot_go_on_says_so(tiny, documents, tmp_path):
    capture_to_store(tiny, LAYER, documents[:60], tmp_path, max_rows=700, **SETTINGS)
    manifest = read_manifest(Folder(tmp_path)).model_dump(mode="json")
    del manifest["last"]
    write_json(Folder(tmp_path), MANIFEST, Manifest.parse(manifest, "old"))
    with pytest.raises(InvalidConfig, match="could make no store longer; capture into another folder"):
        capture_to_store(tiny, LAYER, documents[:60], tmp_path, max_rows=900, **SETTINGS)
