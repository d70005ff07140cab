"""One page about many SAEs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations.models import LoadedModel
from ..activations.source import Source
from ..compare import Comparison, compare
from ..compare.base import Measured
from ..compare.tables import Table, tables
from ..errors import InvalidCheckpoint, InvalidConfig, InvalidInput
from ..files import replaceable, storage, what_is, write_atomically
from ..io import load_sae
from ..progress import Shown
from ..sae import SAE
from ..training.caveats import marked, number
from .catalogue import LEVELS, catalogue
from .charts import budgets, curves, densities, efficiency, fronts
from .curves import Curve, known_dead, read_curve
from .directions import unembedding
from .drawing import Look
from .firings import Firings
from .page import check_installed, render
from .survey import Survey, survey
from .tokens import TokenTable, read_tokens

DOCUMENTS, DOCUMENT_TOKENS, FEWEST_TOKENS = 8, 400, 32
"""Documents whose text is coloured, how much of each, and how short one may be."""


def report(
    runs: Mapping[str, SAE | str | Path],
    source: Source,
    out: str | Path,
    *,
    model: LoadedModel | None = None,
    limit: int | None = None,
    downstream_limit: int | None = 16_384,
    oracle: int | None = 256,
    detailed: int = 5,
    features: int = 2000,
    text_tokens: int = 131_072,
    notes: Sequence[str] = (),
    device: str | torch.device = "cpu",
    progress: Shown = False,
) -> Comparison:
    """Write ``out``, a page of HTML that opens from disk without network, and return the comparison in it.

    All SAEs are compared; ``detailed`` of them are shown token by token and feature by feature: the first SAE of
    every method at the k that most methods have, then at the next nearest.

    Args:
        runs: by name, as for ``apportion.compare``; logs of training are looked for in folders.
        source: what the SAEs were trained on, with the same split.
        out: the file; its folder is made.
        model: also measures in the model, and for a causal one the tokens that features raise and lower; its
            tokenizer reads the text, which without a model is looked for by the name that the source gives.
        limit, downstream_limit, oracle: as for ``apportion.compare``.
        features: most features of each of these SAEs, those with the largest gain.
        text_tokens: held-out tokens among which features' contexts are looked for.
        notes: what else the page is to say at its top, such as which runs are missing.
        device: where SAEs from folders run.
        progress: show bars on stderr.

    Raises:
        InvalidConfig: a number of things to show is below 1, or ``out`` is a folder.
        InvalidInput: no SAE can be compared on the source.
        MissingExtra: plotly or Jinja2 is not installed.
        StorageFailure: ``out`` cannot be written.
    """
    check_installed()
    out = _usable(Path(out), detailed=detailed, features=features, text_tokens=text_tokens)
    logs, unread = _read_logs(runs)
    comparison = compare(
        runs,
        source,
        limit=limit,
        model=model,
        downstream_limit=downstream_limit,
        oracle=oracle,
        device=device,
        progress=progress,
    )
    comparison = replace(comparison, notes=(*notes, *comparison.notes, *unread))
    chosen = in_detail(comparison.saes, detailed)
    text = _Text(source, min(text_tokens, comparison.tokens), model)
    details = [
        _detail(look, runs[sae.name], source, text, limit, features, device, progress)
        for sae, look in zip(chosen, _looks(chosen, comparison), strict=True)
    ]
    pairs = zip(chosen, details, strict=True)
    found = {one.look: known_dead(logs[sae.name], one.dead_after) for sae, one in pairs if sae.name in logs}
    page = render(
        about=_about(source, comparison, details),
        fronts=fronts(comparison, _methods(comparison)),
        efficiency=efficiency(comparison, _methods(comparison)),
        budgets=budgets({one.look: one.survey for one in details}),
        densities=densities({one.look: one.survey for one in details}),
        curves=curves(found),
        details=[one.look for one in details],
        text=text,
        tables=[_without_speed(table) for table in tables(comparison)],
        comparison=comparison,
        blocks=_blocks(details, text),
    )
    write_atomically({out: page})
    return comparison


def in_detail(saes: Sequence[Measured], most: int) -> list[Measured]:
    """At most so many SAEs, by method and k: one of every method at the k that most have, then the next nearest.

    Of several seeds the first counts.
    """
    firsts: dict[tuple[str, float], Measured] = {}
    for sae in saes:
        firsts.setdefault((sae.method, sae.k), sae)
    methods = list(dict.fromkeys(sae.method for sae in saes))
    shared = Counter(k for _, k in firsts)
    middle = sorted(shared)[len(shared) // 2]
    common = max(shared, key=lambda k: (shared[k], -abs(math.log(k / middle)), k))

    def place(sae: Measured) -> tuple[int, int]:
        own = sorted((k for method, k in firsts if method == sae.method), key=lambda k: abs(math.log(k / common)))
        return own.index(sae.k), methods.index(sae.method)

    nearest = sorted(firsts.values(), key=place)[:most]
    return sorted(nearest, key=lambda sae: (methods.index(sae.method), sae.k))


@dataclass(frozen=True, eq=False)
class _Detail:
    """One SAE token by token and feature by feature."""

    look: Look
    survey: Survey
    counts: list[int]
    features: dict[str, list[Any]]
    dead_after: float | None


class _Text:
    """The text of the store and the unembedding of the model, or why there is none."""

    def __init__(self, source: Source, most: int, model: LoadedModel | None) -> None:
        self.table: TokenTable | None = None
        self.W_U: Tensor | None = None
        self.missing = self.no_logits = ""
        try:
            self.table = read_tokens(source, most, model)
        except InvalidInput as error:
            self.missing = str(error)
            self.no_logits = "without text there are no tokens to name"
            return
        if model is None:
            self.no_logits = "no model was given; give the causal model that the activations come from"
            return
        try:
            known = None if model.tokenizer is None else len(model.tokenizer)
            self.W_U = unembedding(model, source.d_in, known)
        except InvalidInput as error:
            self.no_logits = str(error)

    @property
    def tokens(self) -> int:
        return 0 if self.table is None else len(self.table.rows)

    @property
    def documents(self) -> list[tuple[str, int, int]]:
        """Those whose text is coloured, each cut."""
        if self.table is None:
            return []
        all_of_them = self.table.documents
        long = [one for one in all_of_them if one[2] - one[1] >= FEWEST_TOKENS] or all_of_them
        return [(name, first, min(last, first + DOCUMENT_TOKENS)) for name, first, last in long[:DOCUMENTS]]


def _detail(
    look: Look,
    given: SAE | str | Path,
    source: Source,
    text: _Text,
    limit: int | None,
    features: int,
    device: str | torch.device,
    progress: Shown,
) -> _Detail:
    sae = given if isinstance(given, SAE) else load_sae(given).to(device)
    surveyed = survey(sae, source, limit=limit, keep=text.tokens, progress=progress)
    table = text.table
    firings = None if table is None else Firings(surveyed.code, table.begins)
    words = None if table is None else table.words
    listed = catalogue(sae, surveyed, features, firings, words, text.W_U)
    window = number(sae.metadata.get("training", {}).get("config", {}).get("dead_after"))
    return _Detail(look, surveyed, surveyed.code.counts().tolist(), listed, window)


def _read_logs(runs: Mapping[str, SAE | str | Path]) -> tuple[dict[str, Curve], list[str]]:
    """The training of each SAE whose folder has a log, and what is wrong with those that cannot be read."""
    logs, faults = {}, []
    for name, given in runs.items():
        if isinstance(given, SAE):
            continue
        try:
            if (curve := read_curve(Path(given))) is not None:
                logs[name] = curve
        except (InvalidCheckpoint, InvalidInput) as error:  # the figures do not depend on it
            faults.append(f"the training of {name} is not shown, for {error}")
    return logs, faults


def _blocks(details: Sequence[_Detail], text: _Text) -> dict[str, Any]:
    """The JSON blocks of the page: features of each SAE, and the one table of tokens that all point into."""
    blocks: dict[str, Any] = {f"features-{place}": one.features for place, one in enumerate(details)}
    table = text.table
    if table is not None:
        blocks["text"] = {
            "documents": text.documents,
            "counts": [[one.counts[first:last] for _, first, last in text.documents] for one in details],
        }
        blocks["tokens"] = {"words": table.words.texts, "rows": table.rows.tolist(), "levels": LEVELS}
    return blocks


def _methods(comparison: Comparison) -> dict[str, Look]:
    methods = dict.fromkeys(sae.method for sae in comparison.saes)
    return {method: Look(method, series) for series, method in enumerate(methods)}


def _looks(chosen: Sequence[Measured], comparison: Comparison) -> list[Look]:
    """A look for each SAE: that of its method, and a dash of its own where the method is there twice."""
    series = {method: look.series for method, look in _methods(comparison).items()}
    seen: Counter[str] = Counter()
    looks = []
    for sae in chosen:
        label = marked(f"{sae.method} · k {sae.k:g}", sae.caveats)
        looks.append(Look(label, series[sae.method], seen[sae.method], sae.caveats))
        seen[sae.method] += 1
    return looks


def _about(source: Source, comparison: Comparison, details: Sequence[_Detail]) -> dict[str, Any]:
    told = source.describe()
    model = Path(str(told.get("model", ""))).name
    title = "\u00a0· ".join(part for part in (model, str(told.get("module", ""))) if part)
    return {
        "title": title or f"Activations of a {type(source).__name__}",
        "methods": len({sae.method for sae in comparison.saes}),
        "saes": len(comparison.saes),
        "width": len(details[0].survey.density),
        "shown": max(len(one.features["feature"]) for one in details),
        "version": version("apportion"),
    }


def _without_speed(table: Table) -> Table:
    """The table without tokens per second, which is another with every run."""
    kept = [place for place, head in enumerate(table.heads) if head != "tokens/s"]
    heads, rows = [table.heads[i] for i in kept], [[row[i] for i in kept] for row in table.rows]
    return Table(table.title, heads, rows, table.caveats)


def _usable(out: Path, **numbers: int) -> Path:
    """``out`` with a folder around it. Said before hours of measuring, not after."""
    for name, most in numbers.items():
        if most < 1:
            raise InvalidConfig(f"{name} = {most} shows nothing; give at least 1")
    if what_is(out) == "folder":
        raise InvalidConfig(f"{out} is a folder; give the name of an HTML file")
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        replaceable(out)
    return out
