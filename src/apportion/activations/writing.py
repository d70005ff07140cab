"""Shards on their way to the disk: one thread hashes and writes a shard while the model makes the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInput
from .extract import row_columns
from .files import Folder
from .keep import MEDIAN_ROWS, beyond, norm_bound
from .manifest import PROGRESS, Place, Progress, ShardEntry, write_json
from .partial import Pieces
from .plan import ShardPlan, digests_of
from .shards import write_shard


class _Made(NamedTuple):
    """A shard that the model is done with."""

    shard: ShardPlan
    rows: dict[str, Tensor]
    pieces: Pieces


class ShardWriter:
    """Takes shards in order and puts each on disk, then the progress that knows it.

    The first shards are held back until there are ``MEDIAN_ROWS`` rows, or all that there are. Of these the
    median norm is taken, so that every shard, the first one too, says which of its rows are outliers.

    Args:
        done: what is on disk. A capture begun before there were bounds on norms goes on without.
    """

    def __init__(self, folder: Folder, done: Progress) -> None:
        self._folder, self._done = folder, done
        self._held: list[_Made] = []
        self._pool = ThreadPoolExecutor(1, "apportion-store")
        self._pending: Future[Progress] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._pool.shutdown()

    def add(self, shard: ShardPlan, rows: dict[str, Tensor], pieces: Pieces) -> None:
        """Write ``rows``, [rows, width] by module, which nobody else keeps. Raises what the last write raised."""
        self._held.append(_Made(shard, rows, pieces))
        most = min(MEDIAN_ROWS, self._done.settings.max_rows or MEDIAN_ROWS)
        if self._knows_bounds or sum(len(next(iter(made.rows.values()))) for made in self._held) >= most:
            self._write_held()

    def wait(self) -> None:
        """Until all that was handed in is on disk, but for what is held back."""
        if self._pending is not None:
            self._done = self._pending.result()
            self._pending = None

    def finish(self) -> Progress:
        """What is on disk at the end."""
        self._write_held()
        self.wait()
        return self._done

    @property
    def _knows_bounds(self) -> bool:
        unasked = self._done.settings.outliers is None
        return unasked or self._done.bounds is not None or bool(self._done.shards) or self._pending is not None

    def _write_held(self) -> None:
        if self._held and not self._knows_bounds:
            self._done = self._done.model_copy(update={"bounds": self._bounds()})
            write_json(self._folder, PROGRESS, self._done)
        while self._held:
            self.wait()
            self._pending = self._pool.submit(_write, self._folder, self._done, *self._held.pop(0))

    def _bounds(self) -> dict[str, float]:
        """The norm above which a row is an outlier, by module, from the first rows."""
        multiple = self._done.settings.outliers
        first = {
            path: torch.cat([made.rows[path][:MEDIAN_ROWS] for made in self._held])[:MEDIAN_ROWS]
            for path in self._held[0].rows
        }
        found = {path: norm_bound(rows, multiple) for path, rows in first.items()}
        return {path: bound for path, bound in found.items() if bound is not None}


def _write(folder: Folder, done: Progress, shard: ShardPlan, rows: dict[str, Tensor], pieces: Pieces) -> Progress:
    """Put one shard on disk, then the progress that knows it, and take its pieces away."""
    widths = {path: tensor.shape[1] for path, tensor in rows.items()}
    if done.widths not in ({}, widths):
        raise InvalidInput(
            f"the widths of the captured states were {done.widths} and are now {widths}; expected the same for "
            "all contexts: choose a layer or block of the model"
        )
    name = f"shard-{len(done.shards):05d}.safetensors"
    tensors = {f"activations/{path}": tensor for path, tensor in rows.items()} | _columns(shard)
    tensors |= _outliers(rows, done.bounds or {})
    metadata = {
        "documents": json.dumps([document.id for document in shard.documents]),
        "digests": json.dumps(digests_of(shard.documents)),
    }
    digest, size = folder.write(name, lambda file: write_shard(file, tensors, metadata))
    entry = ShardEntry(
        file=name,
        rows=len(tensors["document"]),
        bytes=size,
        sha256=digest,
        first_document=shard.first,
        documents=len(shard.documents),
        contexts=len(shard.windows),
    )
    after = done.model_copy(
        update={
            "widths": widths,
            "targets": "target" in tensors,
            "shards": (*done.shards, entry),
            "last": Place(cursor=done.cursor, fingerprint=done.fingerprint),
            "cursor": shard.end,
            "fingerprint": shard.fingerprint,
        }
    )
    write_json(folder, PROGRESS, after)
    pieces.clear()
    return after


def _outliers(rows: dict[str, Tensor], bounds: Mapping[str, float]) -> dict[str, Tensor]:
    """Which rows are outliers, by module; a shard without any says nothing."""
    marks = {path: beyond(rows[path], bound) for path, bound in bounds.items()}
    return {f"outlier/{path}": torch.from_numpy(own) for path, own in marks.items() if own.any()}


def _columns(shard: ShardPlan) -> dict[str, Tensor]:
    """Everything in a shard besides the activations."""
    windows = shard.windows
    document, position = row_columns(windows)
    columns: dict[str, NDArray[Any]] = {
        "document": document,
        "position": position,
        "document_rows": np.bincount(document - shard.first, minlength=len(shard.documents)).astype(np.int64),
    }
    if windows[0].inputs is None:
        lengths = np.array([len(window.ids) for window in windows], np.int64)
        columns |= {
            "context_ids": np.concatenate([window.ids for window in windows]),
            "context_keep": np.concatenate([window.keep for window in windows]),
            "context_offsets": np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]),
            "context_document": np.array([window.document for window in windows], np.int64),
            "context_start": np.array([window.start for window in windows], np.int64),
        }
    if shard.documents[0].target is not None:
        targets = np.array([document.target for document in shard.documents], np.float32)
        columns["target"] = targets[document - shard.first]
    return {name: torch.from_numpy(column) for name, column in columns.items()}
