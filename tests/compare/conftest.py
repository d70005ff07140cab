"""Two methods at two k with two seeds, trained once on a small source of many documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import apportion as ap

from ..training.training_kit import config, settings, source

KINDS, K, SEEDS = ("token_choice", "mutual_choice"), (3, 6), (0, 1)


def many_documents(heldout: float = 0.3, split_seed: int = 0, shift: float = 0.0) -> ap.TensorSource:
    """The rows of ``training_kit.source``, eight to a document, with that ``shift``."""
    x = source()._rows.x + shift
    return ap.TensorSource(x, torch.arange(len(x)) // 8, heldout=heldout, split_seed=split_seed)


@pytest.fixture(scope="session")
def rows() -> ap.TensorSource:
    return many_documents()


@pytest.fixture(scope="session")
def trained(rows: ap.TensorSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by name; each seed orders the rows too."""
    out = tmp_path_factory.mktemp("compare")
    folders = {}
    for seed in SEEDS:
        runs = {f"{kind}-k{k}": config(kind, k, seed=seed) for kind in KINDS for k in K}
        ap.train(runs, rows, out / f"s{seed}", settings(60, seed=seed))
        folders |= {f"s{seed}/{name}": out / f"s{seed}" / name for name in runs}
    return folders
