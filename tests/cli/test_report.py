"""``apportion report``: trainings in, a page out."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import MODEL, Command
from .test_bad_input import assert_refused


@pytest.fixture
def runs(command: Command, train: list) -> Path:
    assert command(*train, "--k", "4").status == 0
    return Path(train[3])


def test_a_training_becomes_a_page(command: Command, runs: Path, store: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    asked = ["report", runs, "--data", store, "--oracle", "8", "--features", "20"]
    done = command(*asked, "-o", page, "--json")
    assert done.status == 0, done.err
    assert done.rows == [{"page": str(page), "bytes": page.stat().st_size, "saes": 2}]
    text = page.read_text()
    assert MODEL in text and "mutual_choice" in text and " happen" in text  # whose tokenizer is installed
    assert "no model was given" in text
    (runs / "mutual_choice-k4" / "sae.safetensors").write_bytes(b"")
    done = command(*asked, "-o", page)
    assert done.status == 2 and "mutual_choice-k4 is left out" in done.err


def test_bad_input_is_one_sentence(command: Command, runs: Path, store: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for arguments, words in (
        ([tmp_path / "none", "--data", store], r"holds no sae\.json"),
        ([runs, "--data", tmp_path / "none"], r"there is no store"),
        ([runs, "--data", store, "--module", "x"], r"no module 'x'"),
        ([runs, "--data", store, "--limit", "0"], r"none of the 2 SAEs can be compared; .*limit 0"),
        ([runs, "--data", store, "--features", "0"], r"features = 0 shows nothing"),
        ([runs, "--data", store, "--model", str(tmp_path / "m")], r"no model folder"),
    ):
        assert_refused(command("report", *arguments, "-o", page), words)
    assert not page.exists()
