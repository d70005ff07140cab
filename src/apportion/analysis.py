"""What an SAE does with its budget on a source, and what single features of it tell about a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .activations.contexts import ContextSource
from .activations.labels import LabelledSource
from .activations.models import LoadedModel
from .activations.rows import StoreSource
from .activations.source import Batch, Source, Split
from .activations.splits import Bools, Ints
from .complexity import Scores, token_losses
from .downstream import CAUSAL_CONTEXTS, check_model
from .errors import InvalidInput
from .evaluate import reblock
from .metrics import (
    Classes,
    Codec,
    Covariate,
    DocumentMeans,
    Relation,
    SparseProbe,
    device_of,
    local_dimension,
    relations,
    sparse_probe,
)
from .training import with_scores

Columns: TypeAlias = dict[str, list[NDArray[np.float64]]]

_NAMES = ("position", "length", "error", "frequency")
POINTS, POOL = 1024, 16_384
"""Tokens whose local dimension is estimated, and tokens that their neighbours are sought among."""


@runtime_checkable
class RowSource(Protocol):
    """A source that knows its documents and hands out all of its rows, as ``StoreSource`` does."""

    documents: list[str]

    def in_training(self) -> Bools: ...

    def rows(self) -> Iterator[Batch]: ...


@dataclass(frozen=True, eq=False)
class Tokens:
    """Some tokens of a source, what an SAE spends on each, and what that may follow.

    Attributes:
        k: [n] features.
        document, position: [n] the document of each, and its place in that.
        covariates: [n] each, by name.
    """

    k: Ints
    document: Ints
    position: Ints
    covariates: dict[str, Covariate]

    def relations(self) -> list[Relation]:
        """What k follows, with intervals over documents."""
        return relations(self.k, self.covariates, self.document)


def adaptivity(
    sae: Codec,
    source: Source,
    *,
    scores: Mapping[str, Scores] | None = None,
    of_documents: Mapping[str, Covariate] | None = None,
    of_rows: Mapping[str, NDArray[np.float64]] | None = None,
    every: int = 1,
    limit: int | None = None,
    split: Split = "evaluate",
    progress: bool = False,
) -> Tokens:
    """The tokens of a held-out part with k and what it may follow; ``relations()`` of them is the analysis.

    Covariates are ``position`` (place in the context that the model read, from 0), ``frequency`` (share of the
    part's tokens that are the same token; only of a store that kept what its model read), ``length`` (‖x‖²),
    ``error`` (‖x − x̂‖²), every one of ``scores``, complexity upwards, of ``of_rows`` and of ``of_documents``.

    Args:
        source: knows its documents; those of a source without contexts count as one context each.
        scores: of its documents or contexts, by the name to report.
        of_documents: a number or a word for each of ``source.documents``, by the name to report.
        of_rows: a number for each row of the part, in order, NaN where it has none, by the name to report:
            ``surprisals``, ``dimensions``, or others.
        every: read only each so many-th context, so that few tokens come from many documents.
        limit: look at the first so many rows only.

    Raises:
        InvalidInput: widths differ, nothing is left to read, scores, words or numbers do not belong to the
            source, or two have one name.
    """
    if source.d_in != sae.d_in or every < 1:
        raise InvalidInput(
            f"an SAE of width {sae.d_in} was to read each {every}-th context of a source of width {source.d_in}; "
            "give the module that it was trained on, and 1 or more"
        )
    contexts = _contexts(source)
    scored = {name: with_scores(source, one, standardise=False) for name, one in (scores or {}).items()}
    columns: Columns = {}
    kept: list[NDArray[np.bool_]] = []
    with torch.no_grad():
        for batch in tqdm(source.blocks(split, limit), desc="read", unit="block", disable=not progress):
            assert batch.document is not None and batch.position is not None
            rows = contexts.text_of(batch.document, batch.position) % every == 0
            kept.append(rows.numpy())
            if rows.any():
                _add(columns, _measured(sae, _taken(batch, rows), contexts, scored))
    if not columns:
        raise InvalidInput(f"the part {split!r} of the source gave no rows (limit {limit}); raise the limit")
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    k, document, place = (whole.pop(name).astype(np.int64) for name in ("k", "document", "place"))
    found: dict[str, Covariate] = {**whole}
    read = np.concatenate(kept)
    found |= _shares(source, split, read)
    found |= {name: _of_read(name, one, read) for name, one in (of_rows or {}).items()}
    words = {name: _at(one, document) for name, one in (of_documents or {}).items()}
    if twice := [name for name in (*(of_rows or {}), *words) if name in _NAMES or name in scored]:
        raise InvalidInput(f"{twice[0]!r} is the name of two covariates; give one of them another")
    return Tokens(k, document, place, {**found, **words})


def register_probes(
    sae: Codec,
    source: Source,
    labels: Classes,
    *,
    n_features: Sequence[int] = (1, 2, 5),
    document_tokens: int | None = 256,
    progress: bool = False,
) -> list[SparseProbe]:
    """How well 1, 2 and 5 features for each label tell the label of a document; see ``sparse_probe``.

    Probes are fitted to the documents that training read and asked about all others.

    Args:
        source: a store.
        labels: a word for each of ``source.documents``.
        document_tokens: read the first so many tokens of each document; ``None`` for all.

    Raises:
        InvalidInput: the source is no store, widths differ, or the labels make no probe.
        MissingExtra: scikit-learn is not installed.
    """
    if not isinstance(source, RowSource) or source.d_in != sae.d_in:
        raise InvalidInput(
            f"a {type(source).__name__} of width {source.d_in} cannot be probed with an SAE of width {sae.d_in}; "
            "give a StoreSource of the module that it was trained on"
        )
    means = DocumentMeans(len(source.documents), sae.d_sae)
    blocks = reblock(_first_rows(source, document_tokens))
    with torch.no_grad():
        for batch in tqdm(blocks, desc="probe", unit="block", disable=not progress):
            assert batch.document is not None
            means.update(sae.encode(batch.x.to(device_of(sae))), batch.document)
    read = Classes(labels.names, np.where(means.tokens.numpy() > 0, labels.of, -1))
    code, training = means.result(), source.in_training()
    return [sparse_probe(code, read, training, n) for n in n_features]


def labels_of(documents: Sequence[str], words: Mapping[str, str]) -> Classes:
    """The word of each document, by its id.

    Raises:
        InvalidInput: none of the ids has a word.
    """
    names = sorted(set(words.values()))
    number = {name: at for at, name in enumerate(names)}
    of = np.array([number.get(words.get(name, ""), -1) for name in documents], np.int64)
    if not (of >= 0).any():
        raise InvalidInput(f"none of the {len(documents):,} documents has a label; give labels under their ids")
    return Classes(names, of)


def _contexts(source: Source) -> LabelledSource:
    """The source with the place of the first row of its context as each row's target."""
    if not hasattr(source, "documents"):
        raise InvalidInput(
            f"a {type(source).__name__} does not say whose documents its rows are of; use a StoreSource"
        )
    if hasattr(source, "context_starts"):
        document, start = source.context_starts()
    else:
        document = np.arange(len(source.documents))
        start = np.zeros_like(document)
    return LabelledSource(source, document, start, start.astype(np.float64))


def _measured(
    sae: Codec, batch: Batch, contexts: LabelledSource, scored: Mapping[str, LabelledSource]
) -> dict[str, torch.Tensor]:
    x = batch.x.to(device_of(sae))
    code = sae.encode(x)
    start = contexts.label(batch).target
    assert batch.document is not None and batch.position is not None and start is not None
    columns = {
        "k": code.counts(),
        "document": batch.document,
        "place": batch.position,
        "position": batch.position - start,
        "length": x.double().square().sum(1),
        "error": (x.double() - sae.decode(code).double()).square().sum(1),
    }
    return columns | {name: cast(torch.Tensor, one.label(batch).target) for name, one in scored.items()}


def _add(columns: Columns, fresh: Mapping[str, torch.Tensor]) -> None:
    for name, values in fresh.items():
        columns.setdefault(name, []).append(values.double().cpu().numpy())


def _taken(batch: Batch, rows: torch.Tensor) -> Batch:
    assert batch.document is not None and batch.position is not None
    return Batch(batch.x[rows], batch.document[rows], batch.position[rows])


def _shares(source: Source, split: Split, kept: NDArray[np.bool_]) -> dict[str, Covariate]:
    """How frequent the token of each row is in the part, if the source can say."""
    if not isinstance(source, ContextSource):
        return {}
    try:
        contexts = source.contexts(split, 64)
    except InvalidInput:  # captured from tensors
        return {}
    ids = torch.cat([one.input_ids[one.keep] for one in contexts]).numpy()
    own = ids[: len(kept)][kept]
    return {"frequency": np.bincount(ids)[own] / len(ids)}


def surprisals(
    source: Source, model: LoadedModel, *, limit: int | None = None, split: Split = "evaluate"
) -> NDArray[np.float64]:
    """[rows] -log p of each row's token given those before it, nats; NaN for the first token of a context.

    Args:
        model: the causal language model that the source was captured from.
        limit: of the first so many rows, at least.

    Raises:
        InvalidInput: the model predicts no next token or is not the source's, or the source has no contexts.
    """
    if not model.causal:
        raise InvalidInput(
            f"the model {model.name!r} predicts no next token, so no token has a surprisal; leave the model out"
        )
    if isinstance(source, StoreSource):
        check_model(source, model, split)
    if not isinstance(source, ContextSource):
        raise InvalidInput(
            f"a model was given but a {type(source).__name__} has no contexts to feed it; leave the model out"
        )
    batches = source.contexts(split, CAUSAL_CONTEXTS, limit)
    found = [token_losses(model, one.input_ids, one.attention_mask)[one.keep] for one in batches]
    return torch.cat(found).double().numpy() if found else np.zeros(0)


def dimensions(
    source: Source, neighbours: int = 100, *, every: int = 1, limit: int | None = None, split: Split = "evaluate"
) -> NDArray[np.float64]:
    """[rows] the local intrinsic dimension at up to ``POINTS`` rows, evenly spaced; NaN at the others.

    Neighbours are sought among up to ``POOL`` rows, evenly spaced, of which the points are some; see
    ``metrics.local_dimension``. Of no more rows than neighbours there is none.

    Args:
        every, limit: as for ``adaptivity``, which then reads the same rows.

    Raises:
        InvalidInput: there are fewer than 3 neighbours, or ``every`` is below 1.
    """
    if every < 1:
        raise InvalidInput(f"each {every}-th context was to be read; give 1 or more")
    contexts, kept = _contexts(source), []
    for batch in source.blocks(split, limit):
        assert batch.document is not None and batch.position is not None
        kept.append((contexts.text_of(batch.document, batch.position) % every == 0).numpy())
    found = np.full(sum(map(len, kept)), np.nan)
    rows = np.flatnonzero(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
    if neighbours >= len(rows):
        return found
    pool = rows[np.linspace(0, len(rows) - 1, min(len(rows), POOL)).astype(np.int64)]
    points = np.linspace(0, len(pool) - 1, min(len(pool), POINTS)).astype(np.int64)
    parts, first = [], 0
    for batch in source.blocks(split, limit):
        own = pool[(pool >= first) & (pool < first + len(batch.x))] - first
        parts.append(batch.x[torch.from_numpy(own)])
        first += len(batch.x)
    found[pool[points]] = local_dimension(torch.cat(parts), torch.from_numpy(points), neighbours).numpy()
    return found


def _of_read(name: str, values: NDArray[np.float64], read: Bools) -> NDArray[np.float64]:
    """Those of the rows that were read."""
    if len(values) < len(read):
        raise InvalidInput(
            f"{name!r} has {len(values):,} numbers for {len(read):,} rows; give one for each row of the part"
        )
    return values[: len(read)][read]


def _at(covariate: Covariate, document: Ints) -> Covariate:
    """What each token has from its document."""
    if isinstance(covariate, Classes):
        return Classes(covariate.names, covariate.of[document])
    return covariate[document]


def _first_rows(source: RowSource, n: int | None) -> Iterator[Batch]:
    for batch in source.rows():
        assert batch.position is not None
        rows = batch.position < n if n is not None else torch.ones_like(batch.position, dtype=torch.bool)
        if rows.any():
            yield _taken(batch, rows)
