"""Whether a shard says what a capture writes: a checksum tells only that bytes are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest, ShardEntry
from .shards import Header
from .splits import Ints

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CONTEXTS = ("context_ids", "context_keep", "context_offsets", "context_document", "context_start")


def order_fault(manifest: Manifest) -> tuple[ShardEntry, str] | None:
    """The first shard of a manifest that is not the next part of the store, and what is wrong with it."""
    end = 0
    for place, entry in enumerate(manifest.shards):
        name = f"shard-{place:05d}.safetensors"
        if entry.file != name:
            return entry, f"it stands in the place of {name}"
        # The last document of a shard may go on in the next one.
        if not (entry.first_document == end or (place and entry.first_document == end - 1)):
            return entry, f"it begins with document {entry.first_document} where {end} comes next"
        end = entry.first_document + entry.documents
        if end > manifest.documents:
            return entry, f"it covers documents {entry.first_document} to {end} of {manifest.documents}"
    if not manifest.shards:
        return None
    total = sum(entry.rows for entry in manifest.shards)
    if total != manifest.rows:
        return manifest.shards[-1], f"up to it there are {total} rows and should be {manifest.rows}"
    return None


def header_fault(manifest: Manifest, entry: ShardEntry, header: Header) -> str | None:
    """What is wrong with names, types and shapes of a shard's tensors, in words."""
    rows, dtype = entry.rows, _STORED[manifest.dtype]
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
        f"activations/{module}": (dtype, (rows, width)) for module, width in manifest.modules.items()
    }
    expected |= {"document": ("I32", (rows,)), "position": ("I32", (rows,))}
    expected["document_rows"] = ("I64", (entry.documents,))
    if manifest.targets:
        expected["target"] = ("F32", (rows,))
    if manifest.settings.inputs == "text":
        expected |= {"context_ids": ("I32", (None,)), "context_keep": ("BOOL", (None,))}
        expected["context_offsets"] = ("I64", (entry.contexts + 1,))
        expected |= dict.fromkeys(("context_document", "context_start"), ("I64", (entry.contexts,)))
    marks: dict[str, tuple[str, tuple[int | None, ...]]] = {
        f"outlier/{module}": ("BOOL", (rows,)) for module in manifest.bounds or {}
    }
    if unknown := sorted(header.entries.keys() - expected.keys() - marks.keys()):
        return f"the tensor {unknown[0]!r} does not belong there"
    expected |= {name: mark for name, mark in marks.items() if name in header.entries}  # a shard may have none
    for name, (kind, shape) in expected.items():
        found = header.entries.get(name)
        if found is None:
            return f"it lacks the tensor {name!r}"
        wanted = tuple(have if size is None else size for size, have in zip(shape, found.shape, strict=False))
        if found.shape != wanted or len(shape) != len(found.shape):
            return f"its tensor {name!r} has shape {found.shape} and should have {shape}"
        if found.dtype != kind:
            return f"its tensor {name!r} is of type {found.dtype} and should be {kind}"
    return None


def rows_fault(entry: ShardEntry, counts: Ints) -> str | None:
    """What is wrong with the numbers of rows of a shard's documents [documents]."""
    if (counts < 0).any() or int(counts.sum()) != entry.rows:
        return f"its documents have {int(counts.sum())} rows and it has {entry.rows}"
    return None


def columns_fault(entry: ShardEntry, first: int, begins: Ints, columns: dict[str, NDArray[Any]]) -> str | None:
    """What is wrong with the values of a shard's columns, in words.

    Args:
        first: number of its first row in the store.
        begins: [documents of the store] first row of each.
        columns: by name, whole; those of contexts where the store has them.
    """
    counts = columns["document_rows"]
    document = np.repeat(np.arange(len(counts)) + entry.first_document, counts)
    if not np.array_equal(columns["document"], document):
        return "its rows do not belong to its documents, one after the other"
    position = np.arange(first, first + entry.rows) - begins[document]
    if not np.array_equal(columns["position"], position):
        return "the positions of its rows do not count the rows of each document"
    if "target" in columns and not np.isfinite(columns["target"]).all():
        return "a target is not finite"
    if "context_ids" not in columns:
        return None
    ids, keep, offsets, owner, start = (columns[name] for name in CONTEXTS)
    if offsets[0] != 0 or (np.diff(offsets) < 1).any() or offsets[-1] != len(ids) or len(keep) != len(ids):
        return "its contexts do not divide its tokens"
    if (ids < 0).any():
        return "a token has a number below 0"
    kept = np.add.reduceat(keep.astype(np.int64), offsets[:-1])
    heads = kept.cumsum() - kept
    if int(kept.sum()) != entry.rows or (kept < 1).any():
        return f"its contexts keep {int(kept.sum())} tokens and it has {entry.rows} rows"
    if not (np.array_equal(owner, document[heads]) and np.array_equal(start, position[heads])):
        return "its contexts do not begin where its rows do"
    return None
