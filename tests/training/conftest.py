"""What tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from apportion import AllocatorConfig

from .training_kit import import_plugin


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors this small are slowed down by threads, tenfold on a busy machine; some tests ask for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if "two_threads" in request.fixturenames else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> None:
    """Asks for two threads."""


@pytest.fixture
def plugin() -> Iterator[object]:
    """The outside rule, known only as long as the test runs."""
    yield import_plugin()
    AllocatorConfig.members.pop("drop_choice", None)
