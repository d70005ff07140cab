"""Contexts through a model: the activations of their kept tokens, one row each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInput, NonFiniteActivations
from .capture import capture
from .contexts import Window, model_inputs
from .items import positions_and_width
from .models import LoadedModel
from .partial import Pieces

_CHECKED_ROWS = 1024


def forward_batches(windows: Sequence[Window], batch_size: int) -> list[list[int]]:
    """The windows in batches of similar length, so that little is padded: indices into ``windows``."""
    groups: dict[Hashable, list[int]] = {}
    for i in sorted(range(len(windows)), key=lambda i: (-len(windows[i].keep), i)):
        groups.setdefault(windows[i].shapes, []).append(i)
    return [order[at : at + batch_size] for order in groups.values() for at in range(0, len(order), batch_size)]


def extract_rows(
    loaded: LoadedModel,
    modules: Sequence[str],
    windows: Sequence[Window],
    batch_size: int,
    dtype: torch.dtype,
    pieces: Pieces | None = None,
    seen: Callable[[int], object] = int,
) -> dict[str, Tensor]:
    """[rows, width] on the CPU for each module: the kept tokens of ``windows``, in their order.

    Args:
        pieces: what an earlier process made of them, which is not made again, and where what is made is kept.
        seen: called with the number of rows of every batch that is done.

    Raises: ``NonFiniteActivations`` naming document and position, ``InvalidInput`` if a module's positions
    are not those of the tokens.
    """
    counts = np.array([window.rows for window in windows], np.int64)
    begins = [0, *counts.cumsum().tolist()]
    rows: dict[str, Tensor] = {}
    loaded.check_mode()
    batches = forward_batches(windows, batch_size)
    if all(len(batch) == 1 for batch in batches):
        _check_states(loaded, modules, windows[0])
    places = [torch.cat([torch.arange(begins[i], begins[i + 1]) for i in batch]) for batch in batches]
    done = 0 if pieces is None else pieces.restore(rows, modules, places, dtype)
    seen(sum(windows[i].rows for batch in batches[:done] for i in batch))
    for number, (batch, place) in enumerate(zip(batches[done:], places[done:], strict=True), done + 1):
        inputs, keep = model_inputs([windows[i] for i in batch], loaded.device)
        for path, hidden in capture(loaded.model, modules, inputs).items():
            if hidden.shape[:2] != keep.shape:
                raise InvalidInput(
                    f"module {path!r} gave {tuple(hidden.shape)} for contexts of shape {tuple(keep.shape)}; "
                    "expected one position per token: choose another module"
                )
            kept = hidden[keep.to(hidden.device)]
            if path not in rows:
                rows[path] = torch.empty(begins[-1], kept.shape[1], dtype=dtype)
            if kept.shape[1] != rows[path].shape[1]:
                raise InvalidInput(
                    f"module {path!r} gives states of width {rows[path].shape[1]} and of width {kept.shape[1]}; "
                    "expected one width: choose a layer or block of the model"
                )
            rows[path][place] = kept.to("cpu", dtype)
        seen(len(place))
        if pieces is not None and number < len(batches):
            pieces.add(number, place, rows)
    for path, tensor in rows.items():
        _check_finite(tensor, path, windows)
    return rows


def _check_states(loaded: LoadedModel, modules: Sequence[str], window: Window) -> None:
    # Batches of one cannot tell a state per context from a tensor that all contexts share.
    inputs, _ = model_inputs([window], loaded.device)
    positions_and_width(loaded, modules, {name: value[0] for name, value in inputs.items()})


def row_columns(windows: Sequence[Window]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Document and position of every row of ``windows``, each [rows]."""
    counts = np.array([window.rows for window in windows], np.int64)
    document = np.repeat(np.array([window.document for window in windows], np.int32), counts)
    start = np.repeat(np.array([window.start for window in windows], np.int64), counts)
    within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return document, (start + within).astype(np.int32)


def _check_finite(rows: Tensor, path: str, windows: Sequence[Window]) -> None:
    # A sum is finite only if every term is; the exact search is left for when it is not.
    # Piece by piece: a sum in another type begins with a copy.
    pieces = rows.split(_CHECKED_ROWS)
    if all(bool(torch.isfinite(piece.sum(dtype=torch.float32))) for piece in pieces):
        return
    bad = torch.cat([~torch.isfinite(piece).all(1) for piece in pieces]).nonzero()
    if len(bad):
        document, position = row_columns(windows)
        at = int(bad[0])
        raise NonFiniteActivations(
            f"module {path!r} gave a NaN or infinite activation at document {document[at]}, position "
            f"{position[at]} (stored as {str(rows.dtype).removeprefix('torch.')}); use a wider dtype or "
            "repair the model or that text"
        )
