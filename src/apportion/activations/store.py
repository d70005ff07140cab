"""Capture a module's activations into a store: shards of rows, and a manifest once all of them are there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CorruptStore, InvalidConfig, InvalidInput, StorageFailure
from ..files import locked
from ..progress import Shown, bar
from .checks import order_fault
from .contexts import Cutter, TextCutter, check_context, embedding_rows
from .extract import extract_rows
from .files import Folder
from .frame import Bos
from .items import Item, ItemCutter
from .keep import OUTLIERS, check_outliers
from .manifest import (
    MANIFEST,
    PROGRESS,
    CaptureSettings,
    Manifest,
    Progress,
    ShardEntry,
    read_manifest,
    read_progress,
    write_json,
)
from .models import LoadedModel, load_model
from .partial import Pieces, forget_partial, read_partial
from .places import spelled
from .plan import Plan
from .precision import name_of
from .records import LeftOut
from .shards import damaged
from .sites import find_site
from .texts import Document, Documents
from .weights import fingerprint_of
from .writing import ShardWriter

_OURS = r"(?:shard|partial)-[\d-]+\.safetensors|(?:manifest|progress|partial)\.json"
SHARD_ROWS = 65_536
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def capture_to_store(
    model: LoadedModel | str,
    modules: str | Sequence[str],
    documents: Iterable[Document | Item],
    out: str | Path,
    *,
    context: int = 128,
    batch_size: int = 32,
    dtype: str = "float32",
    shard_rows: int | None = None,
    max_rows: int | None = None,
    outliers: float | None = OUTLIERS,
    skip_first: int = 0,
    bos: Bos = "auto",
    progress: Shown = False,
    data_description: Any = None,
) -> Manifest:
    """Capture ``modules`` over ``documents`` into the folder ``out`` (a path or fsspec URL).

    The same documents and settings give the same store to the byte, however often the capture is killed and
    called again: it goes on after the last whole shard. A complete store is left as it is. Memory holds the
    model, the states of one batch and a shard, and beside that what is made of the next one while a shard is
    written.

    Args:
        modules: module paths, all captured in one pass.
        documents: texts, or items of tensors for a model that is fed something else. What ``iter_documents``
            leaves out of them is counted in the manifest, and said in one line at the end.
        context: most tokens that the model reads at once, special tokens included; longer documents are cut.
        batch_size: contexts per forward pass.
        dtype: of the activations on disk: float32, float16 or bfloat16.
        shard_rows: most rows per shard, at least ``context``, or the rows of an item; None for 65,536, or
            ``context`` if that is more.
        max_rows: end after exactly this many rows. A finished store goes on if more are asked for: its last shard
            is made again, and it ends with the same bytes as one that was captured at once.
        outliers: mark rows whose norm is above so many times the median of their module's first rows; sources
            leave them out. None marks none.
        skip_first: leave out the first so many positions of every context (special tokens count), whose states
            are often unlike all others.
        bos: whether a context begins with the token that begins a text (BOS): as the tokenizer does it, "yes"
            for always, "no" for never. It takes a place of the context and is never stored.
        progress: show a bar on standard error.
        data_description: JSON that says where the documents come from.

    Raises: ``UnknownName`` (model, module), ``InvalidConfig`` (a setting; another capture in ``out``),
    ``InvalidInput`` (no usable text, or inputs that the model cannot run on), ``NonFiniteActivations``,
    ``StorageFailure`` (also while another process captures into ``out``), ``CorruptStore`` (a shard of a
    capture in ``out`` is gone or cut off).
    """
    names = [modules] if isinstance(modules, str) else list(dict.fromkeys(modules))
    shard_rows = max(SHARD_ROWS, context) if shard_rows is None else shard_rows
    given = {"context": context, "batch_size": batch_size, "dtype": dtype, "shard_rows": shard_rows}
    name = model if isinstance(model, str) else model.name
    given |= {"model": spelled(name), "modules": names, "max_rows": max_rows, "data": data_description}
    given |= {"outliers": check_outliers(outliers), "skip_first": skip_first, "bos": bos}
    stream = iter(documents)
    head = list(itertools.islice(stream, 1))
    tensors = bool(head) and isinstance(head[0], Item)
    settings = CaptureSettings.parse(given | {"inputs": "tensors" if tensors else "text"}, "capture")
    if shard_rows < context and not tensors:
        raise InvalidConfig(f"shard_rows = {shard_rows} is below context = {context}; raise it to that at least")
    loaded = load_model(model) if isinstance(model, str) else model
    loads = {"model_dtype": name_of(loaded.dtype), "device_map": loaded.device_map}
    settings = settings.model_copy(update=loads)
    for path in settings.modules:
        find_site(loaded.model, path)
    cutter = cutter_of(loaded, settings.modules, context, tensors, skip_first=skip_first, bos=bos)
    folder = Folder(out)
    folder.create()
    left_out = documents.left_out if isinstance(documents, Documents) else LeftOut()
    plan = Plan(settings, loaded.tokenizer, itertools.chain(head, stream), cutter)
    weights = fingerprint_of(loaded.model)
    if folder.exists(MANIFEST) and not _is_longer(settings, read_manifest(folder)):
        return _finished(folder, settings, plan, weights)
    with contextlib.ExitStack() as stack:
        if folder.local is not None:
            stack.enter_context(locked(folder.local, "capturing into"))
        if folder.exists(MANIFEST):
            manifest = read_manifest(folder)
            if not _is_longer(settings, manifest):  # whoever held the lock has completed it
                return _finished(folder, settings, plan, weights)
            _reopen(folder, settings, manifest, weights)
        counter = stack.enter_context(bar(total=max_rows, desc="capture", unit="row", shown=progress))
        return _run(loaded, plan, _begin(folder, settings, weights), folder, counter, left_out)


def cutter_of(
    loaded: LoadedModel,
    modules: Sequence[str],
    context: int,
    tensors: bool,
    *,
    skip_first: int = 0,
    bos: Bos = "auto",
) -> Cutter[Any]:
    """What makes contexts for ``loaded``: of items if ``tensors``, else of texts.

    Raises as ``check_context`` does, and ``InvalidConfig`` for a ``bos`` of tensors.
    """
    if tensors:
        if bos != "auto":
            raise InvalidConfig(f"bos = {bos!r} is about texts, and the inputs are tensors; leave it at auto")
        return ItemCutter(loaded, modules, skip_first)
    check_context(loaded.model, loaded.tokenizer, context, skip_first=skip_first, bos=bos, name=loaded.name)
    rows = embedding_rows(loaded.model)
    return TextCutter(loaded.tokenizer, context, rows, skip_first=skip_first, bos=bos)


def _begin(folder: Folder, settings: CaptureSettings, weights: str) -> Progress:
    """The progress to go on from. Refuses another capture's, or one whose shards are gone."""
    known = read_progress(folder) or Progress(settings=settings, weights=weights)
    most = known.settings.max_rows
    if most is not None and (settings.max_rows is None or settings.max_rows > most):
        if known.rows == most:
            raise InvalidConfig(
                f"max_rows was {most} and is now {settings.max_rows}, and {folder.url} has all {most} rows and "
                "no manifest; finish it with the old max_rows first, then raise it"
            )
        known = known.model_copy(update={"settings": settings})
    _same(folder, known.settings, settings)
    _same_weights(folder, known, weights)
    _check_sizes(folder, known.shards)
    return known


def _is_longer(asked: CaptureSettings, manifest: Manifest) -> bool:
    """True if more rows are asked for than a finished store was to have."""
    before = manifest.settings.max_rows
    return before is not None and (asked.max_rows is None or asked.max_rows > before)


def _reopen(folder: Folder, settings: CaptureSettings, manifest: Manifest, weights: str) -> None:
    """Make an unfinished capture of a finished store, for it to go on: its last shard is made again, and longer.

    Raises ``InvalidConfig`` for other settings, and for a store that does not say where its last shard begins.
    """
    there = manifest.settings.model_copy(update={"max_rows": settings.max_rows})
    _same(folder, there, settings)
    _same_weights(folder, manifest, weights)
    _check_sizes(folder, manifest.shards)
    if fault := order_fault(manifest):
        raise damaged(folder, fault[0].file, fault[1])
    unfinished = manifest.reopened(settings)
    if unfinished is None:
        raise InvalidConfig(
            f"max_rows was {manifest.settings.max_rows} and is now {settings.max_rows}, and {folder.url} was "
            "captured by a version that could make no store longer; capture into another folder"
        )
    write_json(folder, PROGRESS, unfinished)
    folder.remove(MANIFEST)  # a kill before this leaves the finished store, and its last shard as it was


def _check_sizes(folder: Folder, shards: Sequence[ShardEntry]) -> None:
    for shard in shards:
        size = folder.size(shard.file)
        if size != shard.bytes:
            fault = "is missing" if size < 0 else f"has {size} bytes instead of {shard.bytes}"
            raise CorruptStore(
                f"shard {folder.path(shard.file)} of the capture {fault}; restore it, or delete the folder and "
                "capture again"
            )


def _finished(folder: Folder, settings: CaptureSettings, plan: Plan, weights: str) -> Manifest:
    """The manifest of the store that is already complete, if it is the one asked for."""
    manifest = read_manifest(folder)
    _same(folder, manifest.settings, settings)
    _same_weights(folder, manifest, weights)
    _check_sizes(folder, manifest.shards)
    plan.verify(manifest.documents, manifest.fingerprint, whole=manifest.rows != settings.max_rows)
    LeftOut().tell(manifest.left_out)
    with contextlib.suppress(StorageFailure):  # a finished store is as good where nothing may be written
        folder.remove(PROGRESS)  # a kill may have come between the manifest and this
        forget_partial(folder)
        folder.clear_temporaries(_OURS)
    return manifest


def _same(folder: Folder, there: CaptureSettings, asked: CaptureSettings) -> None:
    # The fingerprint guards the documents themselves; where they lie may be spelled in many ways. Nor do the
    # devices that a model is spread over make another store.
    old, new = (one.model_dump(mode="json", exclude={"data", "device_map"}) for one in (there, asked))
    old["model"] = spelled(old["model"])
    changed = [f"{key} was {old[key]!r} and is now {new[key]!r}" for key in old if old[key] != new[key]]
    if changed:
        raise InvalidConfig(
            f"{folder.url} holds a capture with other settings ({'; '.join(changed)}); capture into another "
            "folder or repeat the old settings"
        )


def _same_weights(folder: Folder, there: Progress | Manifest, weights: str) -> None:
    # What was captured before there were fingerprints has none.
    if there.weights and there.weights != weights:
        raise InvalidConfig(
            f"{folder.url} was captured from other weights of {there.settings.model} (fingerprint "
            f"{there.weights}) than it has now ({weights}); bring those back, or capture into another folder"
        )


def _run(
    loaded: LoadedModel, plan: Plan, done: Progress, folder: Folder, counter: Any, left_out: LeftOut
) -> Manifest:
    settings = done.settings
    counter.update(done.rows)
    left = read_partial(folder)
    with ShardWriter(folder, done) as writer:
        for number, shard in enumerate(plan.shards(done.cursor, done.rows, done.fingerprint), len(done.shards)):
            # Their pieces take the place of those of the shard before, which must be there by then.
            pieces = Pieces(folder, number, shard.key, left, before=writer.wait)
            dtype, size = DTYPES[settings.dtype], settings.batch_size
            rows = extract_rows(loaded, settings.modules, shard.windows, size, dtype, pieces, seen=counter.update)
            writer.add(shard, rows, pieces)
            del rows  # for the writer to free it, and not the next shard
        done = writer.finish()
    if not done.shards:
        beyond = f" beyond the first {settings.skip_first} of each context" if settings.skip_first else ""
        raise InvalidInput(
            f"the {plan.documents} documents hold no token to capture{beyond}; give documents with (longer) text"
        )
    # What was read ahead of the last document that is in the store depends on where a kill came.
    without = left_out.counts(None if plan.exhausted else plan.documents)
    left_out.tell(without)
    manifest = Manifest(
        model=settings.model,
        modules=done.widths,
        dtype=settings.dtype,
        rows=done.rows,
        documents=plan.documents,
        fingerprint=plan.fingerprint,
        weights=done.weights,
        targets=done.targets,
        left_out=without,
        settings=settings,
        shards=done.shards,
        bounds=done.bounds,
        last=done.last,
    )
    write_json(folder, MANIFEST, manifest)
    folder.remove(PROGRESS)
    forget_partial(folder)
    folder.clear_temporaries(_OURS)
    return manifest
