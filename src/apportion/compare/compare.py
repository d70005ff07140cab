"""Measure many SAEs on the same held-out tokens, one after the other, and compare their methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..activations.models import LoadedModel
from ..activations.source import Source
from ..device import usable_device
from ..downstream import Downstream, fewer
from ..errors import ApportionError, InvalidInput
from ..evaluate import evaluate
from ..io import load_sae
from ..metrics.base import Moments, wide
from ..metrics.intervals import redrawn_sums
from ..progress import Shown
from ..sae import SAE
from ..training.caveats import caveats, dead_in_training
from .base import Comparison, Difference, Measured
from .origin import Origin, check_fair, methods_of, origin_of
from .summary import Sample, Summary

DRAWS = 1000
"""Sets of documents that an interval within a seed is drawn from."""
FEWEST_DOCUMENTS = 20
"""Of fewer documents no interval is given."""


def compare(
    saes: Mapping[str, SAE | str | Path],
    source: Source,
    *,
    limit: int | None = None,
    model: LoadedModel | None = None,
    downstream_limit: int | None = 16_384,
    oracle: int | None = 256,
    device: str | torch.device = "cpu",
    progress: Shown = False,
) -> Comparison:
    """Methods beside one another: every SAE on the same held-out tokens, then methods at equal measured L0.

    SAEs of one method that differ in k are its front. Between two of its points FVU is read on a straight line in
    log FVU over log L0, and never outside of them; of frozen rules that meet k to a few percent, all are read
    at the L0 nearest to k that each of them reaches. Methods are paired by seed: the same initial weights and the
    same order of rows. Intervals are at 95 %: over two or more seeds Student's t with n - 1 degrees of freedom;
    with one, for L0 and FVU, a bootstrap over documents.

    An SAE that cannot be measured, or not fairly (of another width, module, model or data, or trained on
    what is held out here), is left out with a sentence, and so is one that fails on the way.

    Args:
        saes: by name, the last part of which (``runs/soft_sae-k32-s1``) tells the method; an SAE, or its folder,
            which is read when its turn comes.
        source: what the SAEs were trained on, with the same split.
        limit, model, downstream_limit, oracle: as for ``apportion.evaluate``.
        device: where SAEs from folders run.
        progress: show bars on stderr.

    Raises:
        InvalidConfig: the device is not here.
        InvalidInput: no SAE was given, none can be compared, or a model was given and the source has no contexts
            to feed it.
    """
    device = usable_device(device)
    if not saes:
        raise InvalidInput("there are 0 SAEs to compare; give at least one")
    rows = fewer(limit, downstream_limit)
    downstream = None if model is None else Downstream(source, model, limit=rows)
    spread = _spread_by_document(source, limit)
    found: dict[str, _Found] = {}
    left_out: dict[str, str] = {}
    for name, given in saes.items():
        try:
            sae = given if isinstance(given, SAE) else load_sae(given).to(device)
            check_fair(sae, source)
            if sae.d_in == source.d_in:  # if not, `evaluate` says so
                _check_width(sae, found)
            measures = evaluate(
                sae,
                source,
                limit=limit,
                oracle=oracle,
                per_document=spread is not None,
                progress=progress,
            )
            if downstream is not None:
                measures |= downstream.of(sae, progress=progress)
            found[name] = _Found.of(name, sae, measures)
        except Exception as error:  # a rule from outside may fail in any way, and the others are hours of work
            left_out[name] = _reason(error)
    measured = _distinct(found, left_out)
    if not measured:
        name, reason = next(iter(left_out.items()))
        raise InvalidInput(f"none of the {len(left_out)} SAEs can be compared; {name}: {reason}")
    comparison = _compared(measured, found, spread, left_out)
    return replace(comparison, notes=(*source.remarks(), *comparison.notes))


@dataclass(frozen=True)
class _Found:
    """What is kept of an SAE once it was measured."""

    origin: Origin
    d_sae: int
    tells_source: bool
    numbers: dict[str, float | None]
    measures: Mapping[str, Any]
    caveats: tuple[str, ...]

    @classmethod
    def of(cls, name: str, sae: SAE, measures: Mapping[str, Any]) -> _Found:
        return cls(
            origin_of(name, sae),
            sae.d_sae,
            "source" in sae.metadata,
            _numbers(sae, measures),
            measures,
            tuple(caveats(sae, name, measures)),
        )


def _reason(error: Exception) -> str:
    """Why an SAE is left out, in one sentence."""
    if isinstance(error, ApportionError):
        return str(error)
    return f"measuring it failed ({type(error).__name__}: {error}); correct its rule"


def _check_width(sae: SAE, found: Mapping[str, _Found]) -> None:
    for name, first in found.items():
        if sae.d_sae != first.d_sae:
            raise InvalidInput(f"it has {sae.d_sae} features and {name} {first.d_sae}; compare SAEs of one width")
        return


def _numbers(sae: SAE, measures: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures that are single numbers, and the shares of features that were dead in training."""
    numbers = {key: value for key, value in measures.items() if value is None or isinstance(value, (int, float))}
    return numbers | dead_in_training(sae.metadata)


def _distinct(found: Mapping[str, _Found], left_out: dict[str, str]) -> list[Measured]:
    """The SAEs with their methods; the second of two with equal method, k and seed is left out."""
    methods = methods_of([one.origin for one in found.values()])
    measured: dict[tuple[Any, ...], Measured] = {}
    for name, one in found.items():
        origin = one.origin
        key = methods[name], origin.k, origin.seed
        if key in measured:
            left_out[name] = (
                f"it is {key[0]} with k = {origin.k:g} and the seed of {measured[key].name}; "
                "give one of the two, or its run another name"
            )
        else:
            measured[key] = Measured(name, methods[name], origin.k, origin.seed, one.numbers, one.caveats)
    return list(measured.values())


def _compared(
    saes: Sequence[Measured], found: Mapping[str, _Found], spread: Tensor | None, left_out: dict[str, str]
) -> Comparison:
    enough = spread is not None and len(spread) >= FEWEST_DOCUMENTS
    redrawn = _redrawn({sae.name: found[sae.name].measures for sae in saes}, spread) if enough else []
    summary = Summary(saes, redrawn, 0 if spread is None else len(spread))
    tokens, differences = saes[0].measures["tokens"], tuple(summary.differences())
    assert tokens is not None
    return Comparison(
        tokens=int(tokens),
        documents=None if spread is None else len(spread),
        saes=tuple(saes),
        points=tuple(summary.points()),
        levels=tuple(summary.levels()),
        differences=differences,
        left_out=left_out,
        notes=(
            *_notes(saes, found, summary, spread),
            *_read_apart(summary),
            *_cut_short(saes),
            *_undrawn(differences, redrawn),
        ),
    )


def _redrawn(measures: Mapping[str, Mapping[str, Any]], spread: Tensor | None) -> list[Sample]:
    """L0 and FVU of every SAE on sets of documents drawn with replacement, the same sets for all."""
    assert spread is not None
    tokens = next(iter(measures.values()))["document_tokens"]
    columns = [tokens, spread.tolist()]
    for one in measures.values():
        columns += [one["document_features"], one["document_error"]]
    sums: NDArray[np.float64] = np.array(columns, np.float64).T
    samples: list[Sample] = []
    for row in redrawn_sums(sums, DRAWS):
        pairs = zip(measures, row[2::2] / row[0], row[3::2] / row[1], strict=True)
        samples.append({name: {"l0": float(l0), "fvu": float(fvu)} for name, l0, fvu in pairs})
    return samples


def _spread_by_document(source: Source, limit: int | None) -> Tensor | None:
    """[documents] Σ‖x − x̄‖² over the tokens of each, x̄ the mean of all; by rising number of the document.

    None where the source does not number its documents.
    """
    moments = Moments()
    for batch in source.blocks("evaluate", limit):
        if batch.document is None:
            return None
        moments.update(batch.x)
    sums: dict[int, float] = {}
    for batch in source.blocks("evaluate", limit):
        assert batch.document is not None
        names, slot = torch.unique(batch.document, return_inverse=True)
        squares = (wide(batch.x) - moments.mean).square().sum(-1)
        own = squares.new_zeros(len(names)).index_add_(0, slot, squares)
        for name, value in zip(names.tolist(), own.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + value
    return torch.tensor([sums[name] for name in sorted(sums)], dtype=torch.float64)


def _notes(
    saes: Sequence[Measured], found: Mapping[str, _Found], summary: Summary, spread: Tensor | None
) -> list[str]:
    """What the reader of the tables has to know about what is not in them."""
    notes = [
        f"{sae.name} does not say what it was trained on, so its tokens are held out only if you know them to be"
        for sae in saes
        if not found[sae.name].tells_source
    ]
    if any(len(summary.seeds(method)) == 1 for method in summary.methods):
        if spread is None:
            notes.append("the source does not number its documents, so one seed alone has no interval")
        elif len(spread) < FEWEST_DOCUMENTS:
            notes.append(
                f"{len(spread)} documents are too few for an interval within one seed, which takes "
                f"{FEWEST_DOCUMENTS}; measure more of them or train more seeds"
            )
    if len(summary.methods) > 1:
        for method in summary.methods:
            k = sorted({sae.k for sae in saes if sae.method == method})
            if len(k) == 1:
                notes.append(
                    f"{method} has one point, k = {k[0]:g}, and no front: it is compared at its own L0 only, "
                    "with methods that reach it; train it with two or more k"
                )
    for number, first in enumerate(summary.methods):
        for second in summary.methods[number + 1 :]:
            if not summary.seeds(first, second):
                notes.append(
                    f"{first} and {second} have no seed in common (of initial weights and order of rows), so "
                    "there is no difference to pair; train them with the same seeds"
                )
    return notes


def _read_apart(summary: Summary) -> Iterator[str]:
    """Which cells at equal L0 are empty although the method comes near k."""
    for method, k in summary.apart():
        yield (
            f"{method} is not read near k = {k:g}, for it shares no L0 there, seed by seed, with the methods "
            "nearest to k; train it with more k"
        )


def _cut_short(saes: Sequence[Measured]) -> Iterator[str]:
    """That efficiencies are off where the oracle looked at fewer features than codes have."""
    cut = {sae.name: beyond for sae in saes if (beyond := sae.measures.get("beyond_k_max"))}
    if cut:
        worst = max(cut, key=cut.__getitem__)
        yield (
            f"{len(cut)} of {len(saes)} SAEs give some tokens more features than the oracle may ({worst} "
            f"{cut[worst]:.2%} of them), so their efficiencies are not about k alone; let it give more"
        )


def _undrawn(differences: Sequence[Difference], redrawn: Sequence[Sample]) -> Iterator[str]:
    """Which differences of one seed have no interval although documents were drawn again."""
    for one in differences:
        if redrawn and one.measure == "fvu" and one.value.n == 1 and one.value.half is None:
            yield (
                f"{one.method} less {one.reference} at k = {one.k:g} has no interval, for on some of the "
                f"{len(redrawn)} redrawn sets of documents they share no L0; train more k on either side"
            )
