"""Capture a module's activations into a store: shards of rows, and a manifest once all of them are there."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import CorruptStore, InvalidConfig, InvalidInput, StorageFailure
from ..files import locked
from .capture import resolve_module
from .contexts import Cutter, TextCutter, check_context, embedding_rows
from .extract import extract_rows, row_columns
from .files import Folder
from .items import Item, ItemCutter
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
from .models import INSTALLED, LoadedModel, load_model
from .plan import Plan, ShardPlan
from .shards import write_shard
from .texts import Document

_OURS = r"shard-\d+\.safetensors|manifest\.json|progress\.json"
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
    shard_rows: int = 65_536,
    max_rows: int | None = None,
    progress: bool = False,
    data_description: Any = None,
) -> Manifest:
    """Capture ``modules`` over ``documents`` into the folder ``out`` (a path or fsspec URL).

    The same documents and settings give the same store to the byte, however often the capture is killed and
    called again: it goes on after the last whole shard. A complete store is left as it is. Memory holds two
    shards.

    Args:
        modules: module paths, all captured in one pass.
        documents: texts, or items of tensors for a model that is fed something else.
        context: most tokens that the model reads at once, special tokens included; longer documents are cut.
        batch_size: contexts per forward pass.
        dtype: of the activations on disk: float32, float16 or bfloat16.
        shard_rows: most rows per shard, at least ``context``, or the rows of an item.
        max_rows: end after exactly this many rows.
        progress: show a bar on standard error.
        data_description: JSON that says where the documents come from.

    Raises: ``UnknownName`` (model, module), ``InvalidConfig`` (a setting; another capture in ``out``),
    ``InvalidInput`` (no usable text, or inputs that the model cannot run on), ``NonFiniteActivations``,
    ``StorageFailure`` (also while another process captures into ``out``), ``CorruptStore`` (a shard of a
    capture in ``out`` is gone or cut off).
    """
    names = [modules] if isinstance(modules, str) else list(dict.fromkeys(modules))
    given = {"context": context, "batch_size": batch_size, "dtype": dtype, "shard_rows": shard_rows}
    name = model if isinstance(model, str) else model.name
    given |= {"model": _spelled(name), "modules": names, "max_rows": max_rows, "data": data_description}
    stream = iter(documents)
    head = list(itertools.islice(stream, 1))
    tensors = bool(head) and isinstance(head[0], Item)
    settings = CaptureSettings.parse(given | {"inputs": "tensors" if tensors else "text"}, "capture")
    if shard_rows < context and not tensors:
        raise InvalidConfig(f"shard_rows = {shard_rows} is below context = {context}; raise it to that at least")
    loaded = load_model(model) if isinstance(model, str) else model
    for path in settings.modules:
        resolve_module(loaded.model, path)
    cutter = cutter_of(loaded, settings.modules, context, tensors)
    folder = Folder(out)
    folder.create()
    plan = Plan(settings, loaded.tokenizer, itertools.chain(head, stream), cutter)
    if folder.exists(MANIFEST):
        return _finished(folder, settings, plan)
    with contextlib.ExitStack() as stack:
        if folder.local is not None:
            stack.enter_context(locked(folder.local, "capturing into"))
        if folder.exists(MANIFEST):  # whoever held the lock has completed it
            return _finished(folder, settings, plan)
        bar = stack.enter_context(tqdm(total=max_rows, unit="row", disable=not progress))
        return _run(loaded, plan, _begin(folder, settings), folder, bar)


def cutter_of(loaded: LoadedModel, modules: Sequence[str], context: int, tensors: bool) -> Cutter[Any]:
    """What makes contexts for ``loaded``: of items if ``tensors``, else of texts.

    Raises as ``check_context`` does.
    """
    if tensors:
        return ItemCutter(loaded, modules)
    check_context(loaded.model, loaded.tokenizer, context)
    return TextCutter(loaded.tokenizer, context, embedding_rows(loaded.model))


def _spelled(model: str) -> str:
    """One spelling for a model, so that a capture resumes from another folder too."""
    place = Path(model).expanduser()
    return str(place.resolve()) if model and model not in INSTALLED and place.is_dir() else model


def _begin(folder: Folder, settings: CaptureSettings) -> Progress:
    """The progress to go on from. Refuses another capture's, or one whose shards are gone."""
    known = read_progress(folder) or Progress(settings=settings)
    _same(folder, known.settings, settings)
    _check_sizes(folder, known.shards)
    return known


def _check_sizes(folder: Folder, shards: Sequence[ShardEntry]) -> None:
    for shard in shards:
        size = folder.size(shard.file)
        if size != shard.bytes:
            fault = "is missing" if size < 0 else f"has {size} bytes instead of {shard.bytes}"
            raise CorruptStore(
                f"shard {folder.path(shard.file)} of the capture {fault}; restore it, or delete the folder and "
                "capture again"
            )


def _finished(folder: Folder, settings: CaptureSettings, plan: Plan) -> Manifest:
    """The manifest of the store that is already complete, if it is the one asked for."""
    manifest = read_manifest(folder)
    _same(folder, manifest.settings, settings)
    _check_sizes(folder, manifest.shards)
    plan.verify(manifest.documents, manifest.fingerprint, whole=manifest.rows != settings.max_rows)
    with contextlib.suppress(StorageFailure):  # a finished store is as good where nothing may be written
        folder.remove(PROGRESS)  # a kill may have come between the manifest and this
        folder.clear_temporaries(_OURS)
    return manifest


def _same(folder: Folder, there: CaptureSettings, asked: CaptureSettings) -> None:
    # The fingerprint guards the documents themselves; where they lie may be spelled in many ways.
    old, new = (one.model_dump(mode="json", exclude={"data"}) for one in (there, asked))
    old["model"] = _spelled(old["model"])
    changed = [f"{key} was {old[key]!r} and is now {new[key]!r}" for key in old if old[key] != new[key]]
    if changed:
        raise InvalidConfig(
            f"{folder.url} holds a capture with other settings ({'; '.join(changed)}); capture into another "
            "folder or repeat the old settings"
        )


def _run(loaded: LoadedModel, plan: Plan, done: Progress, folder: Folder, bar: Any) -> Manifest:
    settings = done.settings
    bar.update(done.rows)
    # One thread hashes and writes a shard while the model makes the next one.
    with ThreadPoolExecutor(1, "apportion-store") as writer:
        pending: Future[Progress] | None = None
        for shard in plan.shards(done.cursor, done.rows, done.fingerprint):
            rows = extract_rows(
                loaded, settings.modules, shard.windows, settings.batch_size, DTYPES[settings.dtype]
            )
            if pending is not None:
                done = pending.result()
            pending = writer.submit(_write, folder, done, shard, rows)
            bar.update(len(next(iter(rows.values()))))
        if pending is not None:
            done = pending.result()
    if not done.shards:
        raise InvalidInput(f"the {plan.documents} documents hold no token to capture; give documents with text")
    manifest = Manifest(
        model=settings.model,
        modules=done.widths,
        dtype=settings.dtype,
        rows=done.rows,
        documents=plan.documents,
        fingerprint=plan.fingerprint,
        targets=done.targets,
        settings=settings,
        shards=done.shards,
    )
    write_json(folder, MANIFEST, manifest)
    folder.remove(PROGRESS)
    folder.clear_temporaries(_OURS)
    return manifest


def _write(folder: Folder, done: Progress, shard: ShardPlan, rows: dict[str, Tensor]) -> Progress:
    """Put one shard on disk, then the progress that knows it."""
    widths = {path: tensor.shape[1] for path, tensor in rows.items()}
    if done.widths not in ({}, widths):
        raise InvalidInput(
            f"the widths of the captured states were {done.widths} and are now {widths}; expected the same for "
            "all contexts: choose a layer or block of the model"
        )
    name = f"shard-{len(done.shards):05d}.safetensors"
    tensors = {f"activations/{path}": tensor for path, tensor in rows.items()} | _columns(shard)
    metadata = {"documents": json.dumps([document.id for document in shard.documents])}
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
            "cursor": shard.end,
            "fingerprint": shard.fingerprint,
        }
    )
    write_json(folder, PROGRESS, after)
    return after


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
