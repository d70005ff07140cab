"""A few of each kind of harm, and those that were found in use. All of them: ``make hostile``."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apportion.activations import StoreSource
from apportion.errors import CorruptStore

from . import craft, damage, sweeps, world
from .cases import Tally, run_all
from .readers import KINDS


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # no other thread may exist when this process forks
    pytest.importorskip("transformers")
    yield world.build(tmp_path_factory.mktemp("hostile") / "world")
    torch.set_num_threads(before)


def assert_good(tallies: dict[str, Tally], n: int) -> None:
    failures = [words for tally in tallies.values() for words in tally.failures]
    assert failures == [] and sum(tally.n for tally in tallies.values()) == n


def soon() -> float:
    return time.monotonic() + 120


def test_flips_are_named_or_harmless(here: Path, tmp_path: Path) -> None:
    tallies = run_all(damage.flips(here, tmp_path, 2 * len(KINDS)), soon())
    assert_good(tallies, 2 * len(KINDS))
    assert sum(tally.counts["refused"] for tally in tallies.values()) > len(KINDS)


def test_broken_structure_is_named_or_harmless(here: Path, tmp_path: Path) -> None:
    n = len(damage.STRUCTURAL) * len(KINDS) // 9  # every way, and every kind of file
    assert_good(run_all(damage.structural(here, tmp_path, n, step=9), soon()), n)


def test_senseless_contents_under_right_checksums_are_refused(here: Path, tmp_path: Path) -> None:
    assert_good(run_all(craft.crafted(here, tmp_path, 2 * len(craft.WRITERS)), soon()), 2 * len(craft.WRITERS))


def test_odd_options_are_refused_or_work(here: Path, tmp_path: Path) -> None:
    assert_good(sweeps.sweep(here, tmp_path, 14, lambda: False), 14)


@pytest.mark.parametrize("harm", ["cut off", "written to"])
def test_a_shard_that_changes_while_it_is_read_is_named(here: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(here / "store", tmp_path / "store")
    shard = tmp_path / "store" / "shard-00001.safetensors"
    source = StoreSource(tmp_path / "store")
    stream = source.stream(64, 0)
    next(stream)
    if harm == "cut off":
        os.truncate(shard, 4096)
    else:
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        os.utime(shard, ns=(0, 0))
    with pytest.raises(CorruptStore, match=r"shard-00001.* is damaged: it was (changed|cut off) while"):
        list(source.rows())
    stream.close()
