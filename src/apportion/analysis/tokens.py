"""Some tokens of a held-out part: what an SAE spends on each, and what that may follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..activations.contexts import ContextSource
from ..activations.labels import LabelledSource
from ..activations.source import Batch, Source, Split
from ..activations.splits import Bools, Ints
from ..complexity import Scores
from ..errors import InvalidInput
from ..metrics import Classes, Codec, Covariate, Relation, device_of, relations
from ..progress import Shown, bar
from ..training import with_scores
from .reading import chosen, contexts_of, taken

Columns: TypeAlias = dict[str, list[NDArray[np.float64]]]

OWN = ("position", "length", "error", "frequency")
"""What each token is read with; other covariates have other names."""


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
    progress: Shown = False,
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
    _check_names(*OWN, *(scores or {}), *(of_rows or {}), *(of_documents or {}))
    contexts = contexts_of(source)
    scored = {name: with_scores(source, one, standardise=False) for name, one in (scores or {}).items()}
    columns: Columns = {}
    kept: list[NDArray[np.bool_]] = []
    with torch.no_grad():
        for batch in bar(source.blocks(split, limit), desc="read", unit="block", shown=progress):
            rows = chosen(contexts, batch, every)
            kept.append(rows.numpy())
            if rows.any():
                _add(columns, _measured(sae, taken(batch, rows), contexts, scored))
    if not columns:
        raise InvalidInput(f"the part {split!r} of the source gave no rows (limit {limit}); raise the limit")
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    k, document, place = (whole.pop(name).astype(np.int64) for name in ("k", "document", "place"))
    found: dict[str, Covariate] = {**whole}
    read = np.concatenate(kept)
    found |= _shares(source, split, read)
    found |= {name: _of_read(name, one, read) for name, one in (of_rows or {}).items()}
    words = {name: _at(one, document) for name, one in (of_documents or {}).items()}
    return Tokens(k, document, place, {**found, **words})


def _check_names(*names: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"{twice[0]!r} is the name of two covariates; give one of them another")


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
