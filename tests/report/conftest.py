"""One page, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import apportion as ap
from apportion.activations import LoadedModel, StoreSource
from apportion.report import report

from . import report_kit


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    return report_kit.speaker()


@pytest.fixture(scope="session")
def source(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StoreSource:
    return report_kit.store(tmp_path_factory.mktemp("report") / "store", model)


@pytest.fixture(scope="session")
def runs(source: StoreSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ap.SAE | str | Path]:
    return report_kit.trained(source, tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="session")
def page(
    runs: dict[str, ap.SAE | str | Path],
    source: StoreSource,
    model: LoadedModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("report") / "page.html"
    report(runs, source, out, model=model, oracle=16, detailed=3)
    return out
