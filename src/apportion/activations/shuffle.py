"""Streams of training rows: shuffled in pools, each a pure function of seed, epoch and where it begins.

A *pool* is as many rows as memory is to hold, in random order. Since a pool can be made again from three
numbers, a stream's state is those and a place in the pool, and resuming costs one pool, however late it is.
"""

from __future__ import annotations

import queue
import threading
import weakref
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidConfig, InvalidInput
from .source import Batch, Stream
from .splits import Ints, Ranges

BLOCK = 64  # consecutive rows that travel together: long enough to read fast, short enough to mix
_BLOCKS_PER_POOL = 1024  # what a small pool shortens its blocks for, so that it still mixes documents


class Place(NamedTuple):
    """Where a pool begins: an epoch, and a place in that epoch's order."""

    epoch: int
    at: int


class Pools(Protocol):
    """Shuffled training rows, a pool at a time."""

    def load(self, seed: int, place: Place) -> tuple[Batch, Place]:
        """The pool that begins at ``place``, its rows in random order, and where the next one begins.

        A pure function of its arguments; over an epoch, every training row comes once. A pool may be empty.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a stream's state to mean the same, as JSON."""


class Rows(Protocol):
    """Rows that can be read in any order."""

    def gather(self, rows: Ints) -> Batch:
        """The rows with these numbers, in this order."""


class RowPools:
    """Pools over the whole of ``rows[ranges]``: permuted blocks of consecutive rows, permuted again within.

    Args:
        buffer_rows: about how many rows a pool has; all pools of an epoch have the same number of blocks,
            up to one.
    """

    def __init__(self, rows: Rows, ranges: Ranges, buffer_rows: int) -> None:
        if buffer_rows < 1:
            raise InvalidConfig(f"buffer_rows = {buffer_rows}; expected at least 1: 65536 is usual")
        self._rows, self._ranges, self._buffer = rows, ranges, buffer_rows
        self._block = max(1, min(BLOCK, buffer_rows // _BLOCKS_PER_POOL))
        self._n_blocks = -(-ranges.n // self._block)
        self._n_pools = max(1, -(-ranges.n // buffer_rows))
        self._order: tuple[tuple[int, int], Ints] | None = None

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": self._ranges.n, "buffer_rows": self._buffer}

    def load(self, seed: int, place: Place) -> tuple[Batch, Place]:
        epoch, pool = place
        order = self._blocks(seed, epoch)
        first, last = (self._n_blocks * p // self._n_pools for p in (pool, pool + 1))
        virtual = (order[first:last, None] * self._block + np.arange(self._block)).reshape(-1)
        virtual = virtual[virtual < self._ranges.n]
        shuffled = virtual[generator(seed, epoch, pool).permutation(len(virtual))]
        after = Place(epoch, pool + 1) if pool + 1 < self._n_pools else Place(epoch + 1, 0)
        return self._rows.gather(self._ranges.take(shuffled)), after

    def _blocks(self, seed: int, epoch: int) -> Ints:
        known = self._order  # read once: two streams may share these pools
        if known is None or known[0] != (seed, epoch):
            known = (seed, epoch), generator(seed, epoch).permutation(self._n_blocks)
            self._order = known
        return known[1]


def generator(*key: int) -> np.random.Generator:
    """A generator of its own for every key. Raises ``InvalidConfig`` for a negative seed."""
    if min(key) < 0:
        raise InvalidConfig(f"seed = {key[0]} is negative; expected an integer from 0 on: choose another seed")
    return np.random.default_rng([len(key), *key])


class PooledStream(Stream):
    """Endless full batches from pools, the next pool being loaded in one background thread.

    Raises: ``InvalidInput`` if ``state`` was taken over other rows or with another seed or buffer, if there
    is no training row, and, from ``__next__``, whatever loading a pool raised.
    """

    def __init__(self, pools: Pools, batch_size: int, seed: int, state: dict[str, Any] | None = None) -> None:
        if batch_size < 1:
            raise InvalidConfig(f"batch_size = {batch_size}; expected at least 1: 2048 is usual")
        generator(seed)
        self._batch_size, self._pools = batch_size, pools
        self._fixed = {"seed": seed, **pools.fingerprint()}
        self._place, self._row = _parse_state(state, self._fixed)
        self._loader = _Loader(pools, seed)
        self._pool: Batch | None = None
        self._next = self._place
        self._loader.ask(self._place)

    def state(self) -> dict[str, Any]:
        return {**self._fixed, "epoch": self._place.epoch, "at": self._place.at, "row": self._row}

    def close(self) -> None:
        """End the background thread and let the pools go."""
        self._loader.close()
        self._pool = None

    def __next__(self) -> Batch:
        parts: list[Batch] = []
        missing = self._batch_size
        while missing:
            part = select_rows(self._current(), slice(self._row, self._row + missing))
            if len(part.x):
                parts.append(part)
            self._row += len(part.x)
            missing -= len(part.x)
            if missing:
                self._turn()
        return join(parts)

    def _current(self) -> Batch:
        if self._pool is None:
            self._pool, self._next = self._loader.take()
            self._loader.ask(self._next)
        return self._pool

    def _turn(self) -> None:
        """Go to the next pool; a first pool without rows that ends its epoch would come again for ever."""
        if self._row == 0 and self._place.at == 0 and self._next.epoch > self._place.epoch:
            raise InvalidInput("the training part holds no row; give more documents or hold out fewer")
        self._pool, self._place, self._row = None, self._next, 0


class _Loader:
    """One daemon thread that loads the pool asked for; it ends with its stream at the latest."""

    def __init__(self, pools: Pools, seed: int) -> None:
        self._asked: queue.SimpleQueue[Place | None] = queue.SimpleQueue()
        self._loaded: queue.SimpleQueue[tuple[Batch, Place] | BaseException] = queue.SimpleQueue()
        arguments = pools, seed, self._asked, self._loaded
        self._thread = threading.Thread(target=_load_all, args=arguments, daemon=True, name="apportion-pools")
        self._thread.start()
        # Also runs when the interpreter exits: a thread inside torch must not outlive it.
        self._finish = weakref.finalize(self, _end, self._asked, self._thread)
        self._failed: BaseException | None = None

    def ask(self, place: Place) -> None:
        self._asked.put(place)

    def take(self) -> tuple[Batch, Place]:
        if self._failed is None and self._finish.alive:
            result = self._loaded.get()
            if not isinstance(result, BaseException):
                return result
            self._failed = result
        raise self._failed or InvalidInput("the stream is closed; open another with `stream`")

    def close(self) -> None:
        self._finish()


def _load_all(pools: Pools, seed: int, asked: Any, loaded: Any) -> None:
    while (place := asked.get()) is not None:
        try:
            loaded.put(pools.load(seed, place))
        except BaseException as error:  # handed to the thread that waits for the pool
            loaded.put(error)


def _end(asked: queue.SimpleQueue[Place | None], thread: threading.Thread) -> None:
    asked.put(None)
    if thread is not threading.current_thread():
        thread.join()


def _parse_state(state: dict[str, Any] | None, fixed: dict[str, Any]) -> tuple[Place, int]:
    if state is None:
        return Place(0, 0), 0
    changed = [
        f"{key} was {state.get(key)!r} and is {value!r}"
        for key, value in fixed.items()
        if state.get(key) != value
    ]
    if changed or not all(isinstance(state.get(key), int) for key in ("epoch", "at", "row")):
        raise InvalidInput(
            f"the stream's state does not fit ({'; '.join(changed) or 'no place in it'}); resume with the "
            "same source and seed"
        )
    return Place(state["epoch"], state["at"]), state["row"]


def select_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some rows of every column."""
    return Batch(*(None if column is None else column[rows] for column in _columns(batch)))  # type: ignore[arg-type]


def join(parts: list[Batch]) -> Batch:
    """The batches end to end; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(_columns(part) for part in parts), strict=True)
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def _columns(batch: Batch) -> tuple[Tensor | None, ...]:
    return tuple(getattr(batch, field.name) for field in fields(Batch))
