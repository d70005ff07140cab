"""Small trainings that the tests of this folder share, also in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from apportion import RunConfig, SAEConfig, Source, TensorSource, TrainConfig
from apportion.activations.source import Batch, Stream

D_IN, BATCH = 16, 64
PLUGIN = Path(__file__).with_name("drop_choice.py")


def source(seed: int = 0, d_in: int = D_IN) -> TensorSource:
    """Sums of a few of 40 directions, off centre and not of unit size; several pools, several epochs."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, d_in, generator=generator)
    weights = torch.rand(2048, 40, generator=generator)
    weights *= torch.rand(2048, 40, generator=generator) < 0.1
    x = 0.02 * (weights @ directions + 3 + 0.05 * torch.randn(2048, d_in, generator=generator))
    return TensorSource(x, heldout=0.3, buffer_rows=256)


class Stopped(Exception):
    """The power went out."""


class Watched(Source):
    """The usual source; before batch ``at`` it calls ``act``."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.inner, self.at, self.act = source(), at, act

    @property
    def d_in(self) -> int:
        return self.inner.d_in

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def stream(self, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> Stream:
        return _WatchedStream(self.inner.stream(batch_size, seed, state), self.at, self.act)

    def blocks(self, split: Any, limit: int | None = None) -> Iterator[Batch]:
        return self.inner.blocks(split, limit)


class _WatchedStream(Stream):
    def __init__(self, inner: Stream, at: int, act: Callable[[], None]) -> None:
        self.inner, self.left, self.act = inner, at, act

    def __next__(self) -> Batch:
        if self.left == 0:
            self.act()
        self.left -= 1
        return next(self.inner)

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def close(self) -> None:
        self.inner.close()


def stop() -> None:
    raise Stopped


def config(kind: str = "token_choice", k: float = 4, d_sae: int = 64, **changes: Any) -> RunConfig:
    """A run of one rule; features die early, so that aux-k has work."""
    budget = {"budget": {"kind": "constant", "k": k}} if kind == "token_choice" else {"k": k}
    sae = SAEConfig.parse({"d_in": D_IN, "d_sae": d_sae, "allocator": {"kind": kind, **budget}}, kind)
    return RunConfig.parse({"sae": sae, "dead_after": 192, **changes}, kind)


def settings(n_steps: int = 40, **changes: Any) -> TrainConfig:
    """A stream of that many steps, logged often."""
    fields = {"n_tokens": n_steps * BATCH, "batch_size": BATCH, "log_every": 3, **changes}
    return TrainConfig.parse(fields, "settings")


def import_plugin(path: Path = PLUGIN, name: str = "drop_choice_plugin") -> Any:
    """The outside rule, registered."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def records(run: Path) -> list[dict[str, Any]]:
    """The log of a run without its times and the checksums over them; NaN and infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {run / 'log.jsonl'}")

    lines = (run / "log.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{key: value for key, value in record.items() if key not in ("time", "check")} for record in found]


def saved(run: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the saved tensors, and the description without what depends on the wall clock."""
    description = json.loads((run / "sae.json").read_text())
    description.pop("checksum")
    description["metadata"]["training"].pop("tokens_per_s")
    return (run / "sae.safetensors").read_bytes(), description


def checkpoint(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The one checkpoint of a training: its state without times, and all of its tensors."""
    (folder,) = (out / "checkpoints").iterdir()
    state = json.loads((folder / "checkpoint.json").read_text())
    state.pop("checksum")
    for run in state["runs"].values():
        run["tally"].pop("seconds")
        run.pop("log_bytes")  # times have more digits or fewer
    tensors = {
        f"{file.stem}/{name}": value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    return state, tensors


def assert_same_training(out: Path, reference: Path, runs: list[str]) -> None:
    """Two trainings ended in the same bits."""
    (state, tensors), (expected_state, expected) = checkpoint(out), checkpoint(reference)
    assert state == expected_state
    assert tensors.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(tensors[name], expected[name])]
    assert different == []
    for run in runs:
        assert records(out / run) == records(reference / run)
        assert saved(out / run) == saved(reference / run)
