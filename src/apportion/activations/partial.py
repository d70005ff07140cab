"""What a killed capture had made of the shard that it was at: its batches so far, which a resume puts back.

A shard of a large model takes many minutes. So its rows are also written piece by piece, beside a
``partial.json`` that names them, and removed when the shard is there. Batches come in one order, whatever is
killed when, so the shard ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..config import Config
from ..errors import CorruptStore, InvalidConfig, InvalidInput
from ..files import sha256
from .files import Folder
from .manifest import FORMAT, read_sealed, write_json
from .shards import write_shard

PARTIAL = "partial.json"
PIECE_SECONDS = 30.0
"""Between pieces; with the time that one takes to write, a kill loses less than a minute."""

_ROWS = "activations/"


class Piece(Config):
    """The rows of some batches.

    Attributes:
        batches: how many batches of the shard are done with it.
    """

    file: str = Field(pattern=r"^partial-\d+-\d+\.safetensors$")
    sha256: str
    batches: int = Field(ge=1)


class Partial(Config):
    """What there is of a shard.

    Attributes:
        shard: its number.
        key: what it is made of: pieces of another shard are no use.
    """

    format: Literal["apportion-store"] = FORMAT
    version: int = 1
    shard: int
    key: str
    pieces: tuple[Piece, ...] = ()


class Pieces:
    """The pieces of one shard, written while it is made.

    Args:
        shard: its number.
        key: what it is made of.
        before: called before the first piece is written, and so before those of another shard are forgotten.
    """

    def __init__(self, folder: Folder, shard: int, key: str, before: Callable[[], object]) -> None:
        self._folder, self._before = folder, before
        self._known = Partial(shard=shard, key=key)
        self._places: list[Tensor] = []
        self._at = time.monotonic()

    def restore(self, rows: dict[str, Tensor], n: int) -> int:
        """Fill ``rows``, [n, width] by module, with what an earlier process made; how many batches that is."""
        found = read_partial(self._folder)
        if found is None or (found.shard, found.key) != (self._known.shard, self._known.key):
            return 0
        for piece in found.pieces:
            tensors = self._read(piece)
            if tensors is None:  # damaged: it is made again, with all that comes after it
                break
            place = tensors.pop("place")
            for name, own in tensors.items():
                path = name.removeprefix(_ROWS)
                rows.setdefault(path, torch.empty(n, own.shape[1], dtype=own.dtype))[place] = own
            self._known = self._known.model_copy(update={"pieces": (*self._known.pieces, piece)})
        return self._known.pieces[-1].batches if self._known.pieces else 0

    def add(self, batches: int, place: Tensor, rows: dict[str, Tensor]) -> None:
        """Take in that ``batches`` are done, the last of which gave the rows ``place`` of ``rows``."""
        self._places.append(place)
        if time.monotonic() - self._at < PIECE_SECONDS:
            return
        if not self._known.pieces:
            self._before()
        places = torch.cat(self._places)
        tensors = {"place": places} | {f"{_ROWS}{path}": own[places] for path, own in rows.items()}
        name = f"partial-{self._known.shard:05d}-{len(self._known.pieces):05d}.safetensors"
        digest, _ = self._folder.write(name, lambda file: write_shard(file, tensors, {}))
        piece = Piece(file=name, sha256=digest, batches=batches)
        self._known = self._known.model_copy(update={"pieces": (*self._known.pieces, piece)})
        write_json(self._folder, PARTIAL, self._known)
        self._places, self._at = [], time.monotonic()

    def clear(self) -> None:
        """Remove all pieces, once their shard is there."""
        if self._known.pieces:
            self._folder.remove(PARTIAL)
            for piece in self._known.pieces:
                self._folder.remove(piece.file)

    def _read(self, piece: Piece) -> dict[str, Tensor] | None:
        if not self._folder.exists(piece.file):
            return None
        data = self._folder.read(piece.file)
        try:
            return load(data) if sha256(data) == piece.sha256 else None
        except SafetensorError:
            return None


def read_partial(folder: Folder) -> Partial | None:
    """What ``partial.json`` says, if it is there and whole: what it names can be made again."""
    if not folder.exists(PARTIAL):
        return None
    try:
        return Partial.parse(read_sealed(folder, PARTIAL), PARTIAL)
    except (CorruptStore, InvalidConfig, InvalidInput):
        return None


def forget_partial(folder: Folder) -> None:
    """Remove what a capture left that was killed after its shard was there and before its pieces were gone."""
    if (left := read_partial(folder)) is not None:
        for piece in left.pieces:
            folder.remove(piece.file)
    folder.remove(PARTIAL)
