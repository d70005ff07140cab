"""The description of a store on disk: ``manifest.json`` when it is complete, ``progress.json`` until then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from ..config import Config
from ..errors import CorruptStore, InvalidConfig, InvalidInput, StorageFailure
from ..files import from_json, seal
from .files import Folder
from .frame import Bos

FORMAT: Literal["apportion-store"] = "apportion-store"
VERSION = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"


class CaptureSettings(Config):
    """What decides the bytes of a store, besides the documents.

    Attributes:
        model: name or path of the model.
        modules: paths of the captured modules.
        context: most tokens in a context, special tokens included.
        batch_size: contexts per forward pass.
        shard_rows: most rows in a shard; a shard holds whole contexts.
        max_rows: the store ends after that many rows.
        outliers: rows whose norm is above so many times the median are marked; None marks none.
        skip_first: the first so many positions of every context are left out, special tokens included.
        bos: whether contexts begin with the token that begins a text: as the tokenizer does it, always, never.
        inputs: what the model was fed: windows of a text's tokens, or tensors as they were given.
        model_dtype: type of the model's weights, in which it computed.
        device_map: how the model was spread over devices; it decides nothing but last bits.
        data: where the documents come from, in the words of whoever captured.
    """

    model: str
    modules: tuple[str, ...] = Field(min_length=1)
    context: int = Field(default=128, ge=2)
    batch_size: int = Field(default=32, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    shard_rows: int = Field(default=65_536, ge=1)
    max_rows: int | None = Field(default=None, ge=1)
    outliers: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    skip_first: int = Field(default=0, ge=0)
    bos: Bos = "auto"
    inputs: Literal["text", "tensors"] = "text"
    model_dtype: str = "float32"
    device_map: str | None = None
    data: JsonValue = None


class ShardEntry(Config):
    """One shard: the rows of consecutive contexts.

    Attributes:
        bytes: size of the file.
        sha256: of the file.
        first_document: index of the document that its first row belongs to (or of an empty one before it).
        documents: number of documents that it covers; the last may go on in the next shard.
    """

    file: str = Field(pattern=r"^shard-\d{5,}\.safetensors$")
    rows: int
    bytes: int = Field(ge=8)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    first_document: int
    documents: int
    contexts: int = Field(ge=1)


class Cursor(Config):
    """Where the next shard begins: a document and one of its windows."""

    document: int = Field(default=0, ge=0)
    window: int = Field(default=0, ge=0)


class Place(Config):
    """Where a shard begins: the cursor, and the fingerprint of the documents before it."""

    cursor: Cursor = Cursor()
    fingerprint: str = ""


Bounds = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
"""Norm above which a row is an outlier, by module."""


def _check_bounds(bounds: Bounds | None, settings: CaptureSettings) -> None:
    """Raises ``ValueError`` for bounds that these settings do not ask for."""
    if bounds is not None and (settings.outliers is None or not bounds.keys() <= {*settings.modules}):
        raise ValueError(
            f"it has bounds on norms of {', '.join(bounds)}, and its settings ask for outliers = "
            f"{settings.outliers} of {', '.join(settings.modules)}"
        )


def _check_order(shards: Sequence[ShardEntry], cursor: Cursor) -> None:
    """Raises ``ValueError`` unless ``shards`` follow one another up to where ``cursor`` is."""
    end = 0
    for place, shard in enumerate(shards):
        begun = shard.first_document - end
        if shard.file != f"shard-{place:05d}.safetensors" or not (begun == 0 or (place and begun == -1)):
            raise ValueError(f"{shard.file} is not shard {place} of the store")
        end = shard.first_document + shard.documents
    if cursor.document != end - (cursor.window > 0):
        raise ValueError(f"the next shard begins with document {cursor.document} and those before end at {end}")


class Progress(Config):
    """What an unfinished capture has on disk.

    Attributes:
        widths: width of each module's activations.
        targets: whether the documents carry a target.
        fingerprint: of the documents that the shards were made from.
        bounds: None until they are known. A module without one has no outliers.
        weights: fingerprint of the model's weights; empty in a capture of before there was one.
        last: where the last of the shards begins; None in a capture of before this was kept.
    """

    format: Literal["apportion-store"] = FORMAT
    version: int = VERSION
    settings: CaptureSettings
    widths: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    targets: bool = False
    shards: tuple[ShardEntry, ...] = ()
    cursor: Cursor = Cursor()
    fingerprint: str = ""
    bounds: Bounds | None = None
    weights: str = ""
    last: Place | None = None

    @property
    def rows(self) -> int:
        """Rows on disk."""
        return sum(shard.rows for shard in self.shards)

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        _check_bounds(self.bounds, self.settings)
        _check_order(self.shards, self.cursor)
        if self.last is not None:
            _check_order(self.shards[:-1], self.last.cursor)
        return self


class Manifest(Config):
    """A complete store.

    Attributes:
        modules: width of each captured module's activations, by its path.
        documents: number of documents read, those without a captured token included.
        fingerprint: of these documents (ids, texts and targets, in order).
        targets: whether each row carries the target of its document.
        bounds: see ``Progress``; None in stores of before there were any.
        left_out: records of the data that gave no document, by the reason.
        weights: fingerprint of the model's weights; empty in a store of before there was one.
        last: where the last shard begins, from which a store is made longer; None in one of before.
    """

    format: Literal["apportion-store"] = FORMAT
    version: int = VERSION
    model: str
    modules: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    dtype: Literal["float32", "float16", "bfloat16"]
    rows: int = Field(ge=1)
    documents: int = Field(ge=1)
    fingerprint: str
    weights: str = ""
    targets: bool
    left_out: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    settings: CaptureSettings
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    bounds: Bounds | None = None
    last: Place | None = None

    @model_validator(mode="after")
    def _one_capture(self) -> Self:
        said = (self.model, tuple(self.modules), self.dtype)
        told = (self.settings.model, self.settings.modules, self.settings.dtype)
        if (said[0], sorted(said[1]), said[2]) != (told[0], sorted(told[1]), told[2]):
            raise ValueError(f"it names {said} and its settings {told}")
        _check_bounds(self.bounds, self.settings)
        if self.last is not None:
            _check_order(self.shards[:-1], self.last.cursor)
        return self

    def reopened(self, settings: CaptureSettings) -> Progress | None:
        """The capture as it was before its last shard, which more rows change; None where that is not known."""
        if self.last is None:
            return None
        return Progress(
            settings=settings,
            widths=self.modules,
            targets=self.targets,
            shards=self.shards[:-1],
            cursor=self.last.cursor,
            fingerprint=self.last.fingerprint,
            bounds=self.bounds,
            weights=self.weights,
        )


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a complete store.

    Raises ``StorageFailure`` where there is no store, ``CorruptStore`` for an unfinished or damaged one and
    ``InvalidInput`` for one of a newer format.
    """
    if not folder.exists(MANIFEST):
        if folder.exists(PROGRESS):
            raise CorruptStore(f"the store {folder.url} is unfinished; run its capture again to complete it")
        raise StorageFailure(f"there is no store at {folder.url}; give the folder that `capture` wrote")
    data = read_sealed(folder, MANIFEST)
    try:
        return Manifest.parse(data, MANIFEST)
    except InvalidConfig as error:
        raise CorruptStore(f"{folder.path(MANIFEST)} is damaged ({error}); restore it from a copy") from None


def read_progress(folder: Folder) -> Progress | None:
    """What an unfinished capture left, if anything."""
    if not folder.exists(PROGRESS):
        return None
    data = read_sealed(folder, PROGRESS)
    try:
        return Progress.parse(data, PROGRESS)
    except InvalidConfig as error:
        raise CorruptStore(
            f"{folder.path(PROGRESS)} is damaged ({error}); delete the folder and capture again"
        ) from None


def write_json(folder: Folder, name: str, config: Config) -> None:
    """Write ``config`` with a checksum, atomically; equal configs give equal bytes."""
    text = json.dumps(seal(config.model_dump(mode="json"), Path(folder.path(name))), indent=1) + "\n"
    folder.write(name, lambda file: file.write(text.encode()))


def read_sealed(folder: Folder, name: str) -> Any:
    """What the file ``name`` says, once it is known to be undamaged."""
    try:
        data = from_json(folder.read(name))
    except ValueError as error:
        raise CorruptStore(f"{folder.path(name)} is not JSON ({error}); restore it from a copy") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CorruptStore(f"{folder.path(name)} does not describe an activation store; give another folder")
    version = data.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        raise InvalidInput(
            f"the store {folder.url} has format version {version!r} and this apportion reads 1 up to "
            f"{VERSION}; upgrade apportion or capture again"
        )
    try:
        sealed = data == seal(data, Path(folder.path(name)))
    except InvalidInput:  # NaN, which was never written
        sealed = False
    if not sealed:
        raise CorruptStore(
            f"{folder.path(name)} does not match its checksum, so it was damaged or edited; restore it from a "
            "copy, or delete the folder and capture again"
        )
    return {key: value for key, value in data.items() if key != "checksum"}
