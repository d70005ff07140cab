"""What a killed capture had made of the shard that it was at: its batches so far, which a resume puts back.

A shard of a large model takes many minutes. So its rows are also written piece by piece, beside a
``partial.json`` that names them, and removed when the shard is there. Batches come in one order, whatever is
killed when, so the shard ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    batches: int = Field(ge=1)


class Partial(Config):
    """What there is of a shard.

    Attributes:
        shard: its number.
        key: what it is made of: pieces of another shard are no use.
    """

    format: Literal["apportion-store"] = FORMAT
    version: int = 1
    shard: int = Field(ge=0)
    key: str
    pieces: tuple[Piece, ...] = ()


class Pieces:
    """The pieces of one shard, written while it is made.

    Args:
        shard: its number.
        key: what it is made of.
        left: what ``read_partial`` found when the capture began.
        before: called before the first piece is written, and so before those of another shard are forgotten.
    """

    def __init__(
        self, folder: Folder, shard: int, key: str, left: Partial | None, before: Callable[[], object]
    ) -> None:
        self._folder, self._left, self._before = folder, left, before
        self._known = Partial(shard=shard, key=key)
        self._places: list[Tensor] = []
        self._at = time.monotonic()

    def restore(
        self, rows: dict[str, Tensor], modules: Sequence[str], places: Sequence[Tensor], dtype: torch.dtype
    ) -> int:
        """Fill ``rows``, [n, width] by module, with what an earlier process made; how many batches that is.

        Args:
            places: of each batch of the shard, the rows that it gives.
            dtype: of the rows.
        """
        found = self._left
        if found is None:
            return 0
        if (found.shard, found.key) != (self._known.shard, self._known.key):
            for piece in found.pieces:  # of no use to anyone any more
                self._folder.remove(piece.file)
            return 0
        n, done = sum(map(len, places)), 0
        for piece in found.pieces:
            own = self._read(piece)
            place = torch.cat([torch.zeros(0, dtype=torch.int64), *places[done : piece.batches]])
            if piece.batches > len(places) or not _fits(own, modules, place, dtype, rows):
                break  # damaged: it is made again, with all that comes after it
            for path in modules:
                kept = own[f"{_ROWS}{path}"]
                rows.setdefault(path, torch.empty(n, kept.shape[1], dtype=dtype))[place] = kept
            done = piece.batches
            self._known = self._known.model_copy(update={"pieces": (*self._known.pieces, piece)})
        return done

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

    def _read(self, piece: Piece) -> dict[str, Tensor]:
        """What is in a piece; nothing if it is not as it was written."""
        if not self._folder.exists(piece.file):
            return {}
        data = self._folder.read(piece.file)
        try:
            return load(data) if sha256(data) == piece.sha256 else {}
        except SafetensorError:
            return {}


def _fits(
    own: Mapping[str, Tensor],
    modules: Sequence[str],
    place: Tensor,
    dtype: torch.dtype,
    rows: Mapping[str, Tensor],
) -> bool:
    """Whether the tensors of a piece are the rows ``place`` of these modules, as wide as those in ``rows``."""
    if own.keys() != {"place", *(f"{_ROWS}{path}" for path in modules)} or len(place) == 0:
        return False
    if own["place"].dtype != place.dtype or not torch.equal(own["place"], place):
        return False
    for path in modules:
        kept = own[f"{_ROWS}{path}"]
        if kept.dtype != dtype or kept.ndim != 2 or len(kept) != len(place):
            return False
        if path in rows and rows[path].shape[1] != kept.shape[1]:
            return False
    return True


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
