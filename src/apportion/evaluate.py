"""Measure an SAE on held-out activations, and in the model they come from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from .activations.models import LoadedModel
from .activations.source import BLOCK_ROWS, Batch, Source, Split
from .affinities import Ordered
from .code import Code
from .downstream import Downstream, fewer
from .errors import InvalidInput
from .metrics import (
    Codec,
    Concentration,
    FeatureDensity,
    Json,
    Metric,
    MetricBatch,
    MonotonicImportance,
    Oracle,
    PerDocument,
    Reconstruction,
    Silence,
    Sparsity,
    device_of,
)
from .metrics.base import wide
from .progress import Shown, bar
from .trace import Dictionary, Trace

IMPORTANCE_ROWS = BLOCK_ROWS // 8
"""Tokens of each block whose features are left out one by one, where an oracle is asked for."""


@runtime_checkable
class Readable(Protocol):
    """A dictionary that shows the affinities behind its codes."""

    def read(self, x: Tensor, /) -> Trace: ...

    def restored(self, trace: Trace, /) -> Tensor: ...


@runtime_checkable
class InOrder(Readable, Protocol):
    """One that also says in which order each token would take its features."""

    def order(self, trace: Trace, k: int, /) -> Ordered: ...

    def dictionary(self) -> Dictionary: ...

    def without_features(self) -> Tensor: ...


_Reading: TypeAlias = tuple[Code, Tensor, Trace | None]
"""A block's code, its reconstruction, and what else its dictionary shows of it."""


def evaluate(
    sae: Codec,
    source: Source,
    *,
    limit: int | None = None,
    split: Split = "evaluate",
    model: LoadedModel | None = None,
    downstream_limit: int | None = 16_384,
    oracle: int | None = None,
    per_document: bool = False,
    progress: Shown = False,
) -> dict[str, Json]:
    """The measures of ``apportion.metrics`` for ``sae`` on a held-out part of ``source``.

    Rows are encoded 1,024 at a time however the source hands them out, so every number is the same to the bit
    for any block size of the source; only ``tokens_per_s`` changes from run to run.

    Args:
        sae: an ``SAE``, or anything with ``d_in``, ``d_sae``, ``encode`` and ``decode``.
        limit: measure only the first so many rows.
        model: the model that ``source`` was captured from. With it, the module's kept positions are
            replaced by reconstructions and by zeros, and what that does to the output is measured too.
            ``apportion.downstream.Downstream`` does that for many SAEs in less time.
        downstream_limit: rows for that (a context is always finished), at most ``limit``; ``None`` for all.
        oracle: also measure how well the rule spends its budget, beside the best split with up to so many
            features per token, such as 256; ``None`` for not at all.
        per_document: also the sums of every document, a list each, as ``PerDocument`` gives them.
        progress: show a bar on stderr.

    Returns:
        The results of ``Sparsity``, ``Reconstruction`` and ``FeatureDensity``: ``tokens``, ``documents``,
        ``l0``, ``l0_se``, ``l0_std``, ``l0_min``, ``l0_max``, ``l0_histogram``, ``fvu``,
        ``explained_variance``, ``cosine``, ``never_fires``, ``density_zero``, ``density_log10_edges``,
        ``density_histogram``, ``density_gini``; of ``Concentration``: ``variance_in_top_percent``; of an ``SAE``,
        which shows its affinities, also ``silent`` (``Silence``); then ``tokens_per_s`` (encode and decode, wall
        time). All of these are over the tokens that take part. ``left_out_tokens`` counts the others,
        ``left_out_l0`` and ``left_out_fvu`` are over those alone; their FVU is measured against the mean of the
        tokens that take part, for outliers differ little from one another. With ``oracle`` those of ``Oracle``:
        ``allocation_efficiency`` and what it comes from, and on an eighth of the tokens ``MonotonicImportance``:
        ``importance_alone``, ``importance_in_order``, ``importance_tokens``. With ``per_document`` those of
        ``PerDocument``. With ``model`` those of ``CausalDownstream`` (``downstream_tokens``, ``ce_clean``,
        ``ce_patched``, ``ce_zero``, ``ce_score``, ``kl``) if it predicts next tokens, else of
        ``EncoderDownstream`` (``downstream_tokens``, ``hidden_error``, ``hidden_error_zero``).

    Raises:
        InvalidInput: widths differ, there are no rows or they are all equal, or ``model`` was given and the
            source has no contexts to feed it, or ``oracle`` and the SAE names no order.
        NonFiniteActivations: activations or reconstructions are NaN or infinite.
    """
    if source.d_in != sae.d_in:
        raise InvalidInput(
            f"the source has activations of width {source.d_in} and the SAE reads width {sae.d_in}; "
            "evaluate it on the module it was trained on"
        )
    rows = fewer(limit, downstream_limit)
    downstream = None if model is None else Downstream(source, model, split, rows, keep_bytes=0)
    with torch.no_grad():
        result = _on_activations(sae, source, split, limit, oracle, per_document, progress)
    return result if downstream is None else result | downstream.of(sae, progress=progress)


def reblock(batches: Iterable[Batch], rows: int = BLOCK_ROWS) -> Iterator[Batch]:
    """The same rows in the same order in blocks of ``rows`` (the last may be smaller).

    Every block is newly allocated: the bits of a matrix product can depend on where a view begins.

    Raises:
        InvalidInput: a column that some batches have is missing from others.
    """
    held: list[Batch] = []
    filled = 0
    for batch in batches:
        start = 0
        while start < len(batch.x):
            stop = min(start + rows - filled, len(batch.x))
            held.append(_cut(batch, start, stop))
            filled, start = filled + stop - start, stop
            if filled == rows:
                yield _join(held)
                held, filled = [], 0
    if held:
        yield _join(held)


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    columns: dict[str, Any] = vars(batch)
    part: dict[str, Any] = {name: None if c is None else c[start:stop] for name, c in columns.items()}
    return Batch(**part)


def _join(batches: list[Batch]) -> Batch:
    joined: dict[str, Any] = {}
    for name in vars(batches[0]):
        columns = [getattr(batch, name) for batch in batches]
        absent = sum(column is None for column in columns)
        if 0 < absent < len(columns):
            raise InvalidInput(
                f"{absent} of {len(columns)} batches have no {name!r}; the source must give it always or never"
            )
        joined[name] = None if absent else torch.cat(columns)
    return Batch(**joined)


def _on_activations(
    sae: Codec,
    source: Source,
    split: Split,
    limit: int | None,
    oracle: int | None,
    per_document: bool,
    progress: Shown,
) -> dict[str, Json]:
    device = device_of(sae)
    reconstruction = Reconstruction()
    metrics: list[Metric] = [Sparsity(), reconstruction, FeatureDensity(sae.d_sae), Concentration()]
    if isinstance(sae, Readable):
        metrics.append(Silence(sae.d_sae))
    order = _order(sae, oracle, metrics)
    if per_document:
        metrics.append(PerDocument())
    blocks = bar(
        reblock(source.blocks(split, limit)),
        desc="evaluate",
        unit="block",
        total=None if limit is None else math.ceil(limit / BLOCK_ROWS),
        shown=progress,
    )
    tokens, seconds = 0, 0.0
    for block in blocks:
        x = block.x.to(device)
        began = _now(device)
        code, x_hat, trace = _read(sae, x)
        seconds += _now(device) - began
        tokens += len(x)
        shown = () if trace is None else (order(trace), trace.pre)
        measured = MetricBatch(x, x_hat, code, block.document, *shown)
        for metric in metrics:
            metric.update(measured)
        del trace, shown, measured  # for the next block to have their memory
    if tokens == 0:
        raise InvalidInput(
            f"the part {split!r} of the source gave no rows (limit {limit}), at least 2 are needed; "
            "raise the limit or hold out more documents"
        )
    result = {key: value for metric in metrics for key, value in metric.result().items()}
    result |= _on_the_rest(sae, source.left_out(split, limit), reconstruction.mean)
    return result | {"tokens_per_s": tokens / max(seconds, 1e-9)}


def _on_the_rest(sae: Codec, blocks: Iterable[Batch], mean: Tensor) -> dict[str, Json]:
    """How many tokens take no part, what the SAE spends on them, and what it leaves unexplained.

    Args:
        mean: [d_in] of the tokens that take part.
    """
    tokens, spent, error, spread = 0, 0, 0.0, 0.0
    for block in blocks:
        code, x_hat, _ = _read(sae, block.x.to(device_of(sae)))
        tokens, spent = tokens + len(block.x), spent + code.nnz
        x = wide(block.x)
        error += float((x - wide(x_hat).to(x.device)).square().sum())
        spread += float((x - mean.to(x.device)).square().sum())
    return {
        "left_out_tokens": tokens,
        "left_out_l0": spent / tokens if tokens else None,
        "left_out_fvu": error / spread if spread else None,
    }


def _read(sae: Codec, x: Tensor) -> _Reading:
    if isinstance(sae, Readable):
        trace = sae.read(x)
        return trace.code, sae.restored(trace), trace
    code = sae.encode(x)
    return code, sae.decode(code), None


def _order(sae: Codec, k_max: int | None, metrics: list[Metric]) -> Callable[[Trace], Ordered | None]:
    """What gives a block's order; the oracle joins the ``metrics`` if it was asked for."""
    if k_max is None:
        return lambda trace: None
    if not isinstance(sae, InOrder):
        raise InvalidInput(
            f"an oracle was asked for but a {type(sae).__name__} does not say in which order it takes features; "
            "leave the oracle out or pass an SAE"
        )
    dictionary = sae.dictionary()
    weights = dictionary.W_dec, sae.without_features()
    metrics += [Oracle(*weights), MonotonicImportance(*weights, most=IMPORTANCE_ROWS)]
    return lambda trace: sae.order(trace, k_max)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
