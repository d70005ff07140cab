"""Train and evaluate recipes x k x seeds on real sources; every row keyed by a hash of all that it depends on.

    python benchmarks/quality.py benchmarks/quality.json            # goes on where it was stopped
    python benchmarks/quality.py benchmarks/quality.json --table    # Markdown from the rows there are

Rows are appended to ``benchmarks/results/quality.jsonl`` as they come. Stores and trainings lie in
``benchmarks/.cache`` and may be deleted. Paths in the config are relative to its own folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from guides import Guides, GuidesSpec
from pydantic import Field, model_validator
from rows import CACHE, HERE, append, rows_in

import apportion as ap
from apportion.activations import capture_to_store, load_documents, load_model
from apportion.activations.models import LoadedModel
from apportion.activations.texts import Document
from apportion.compare.fronts import at_l0
from apportion.config import Config
from apportion.downstream import Downstream, fewer
from apportion.metrics.intervals import Interval, over_seeds

RESULTS = HERE / "results" / "quality.jsonl"


class SourceSpec(Config):
    """Activations of one module on some texts; ``every`` takes each so-many-th document."""

    model: str
    module: str
    data: tuple[str, ...]
    every: int = 1


class Variant(Config):
    """A recipe with some of its settings replaced.

    Attributes:
        set: mirrors the run's config, key by key.
        guide: what its targets are, by a name of ``guides``; None for a recipe that learns from none.
        k: only these budgets of the suite's; None for all.
    """

    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)
    guide: str | None = None
    k: tuple[float, ...] | None = None


class Suite(Config):
    """All that a row depends on, apart from recipe, k and seed.

    ``recipes`` are names of recipes or of ``variants``; the width is ``d_sae`` or, without it, ``expansion``
    times that of an activation. ``guides`` says where variants with a guide get it from.
    """

    sources: dict[str, SourceSpec]
    recipes: tuple[str, ...]
    variants: dict[str, Variant] = Field(default_factory=dict)
    guides: GuidesSpec | None = None
    k: tuple[float, ...]
    seeds: tuple[int, ...]
    expansion: int = 16
    d_sae: int | None = None
    heldout: float
    train: ap.TrainConfig
    evaluate_tokens: int
    downstream_tokens: int

    @model_validator(mode="after")
    def _guided(self) -> Suite:
        wanting = [name for name, variant in self.variants.items() if variant.guide is not None]
        if wanting and self.guides is None:
            raise ValueError(f"variant {wanting[0]!r} wants a guide; say under `guides` what they are made with")
        return self


Job = tuple[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--table", action="store_true", help="print Markdown from the rows there are")
    parser.add_argument("--against", help="the recipes that --table compares with, the first two by default")
    parser.add_argument("--source", help="only this source; others may run in processes of their own")
    parser.add_argument("--seed", type=int, help="only this seed, likewise")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    try:
        suite = Suite.parse(json.loads(arguments.config.read_text()), str(arguments.config))
        if arguments.table:
            against = arguments.against.split(",") if arguments.against else suite.recipes[:2]
            print(table(suite, rows_in(arguments.results), against))
            return
        if arguments.seed is not None:
            suite = suite.model_copy(update={"seeds": (arguments.seed,)})
        for name in suite.sources:
            if arguments.source in (None, name):
                run_source(suite, name, arguments.config.parent, arguments.results)
    except ap.ApportionError as error:
        sys.exit(f"quality: {error}")


def found(path: str, base: Path) -> str:
    """A path that exists beside the config, made absolute; anything else (a model's name, say) as it is."""
    return str((base / path).resolve()) if (base / path).exists() else path


def run_source(suite: Suite, name: str, base: Path, results: Path) -> None:
    """All rows of one source that are not there yet, a seed and a guide at a time on one shared stream."""
    spec = suite.sources[name]
    model = load_model(found(spec.model, base))
    documents = [d for path in spec.data for d in load_documents(found(path, base))][:: spec.every]
    store = CACHE / f"store-{name}-{spec.digest()}"
    capture_to_store(model, [spec.module], documents, store, progress=True)
    source = ap.StoreSource(store, heldout=suite.heldout)
    guides = guides_of(suite, base, documents, source, model)
    downstream = Downstream(source, model, limit=fewer(suite.downstream_tokens, suite.evaluate_tokens))
    for seed, guide in product(suite.seeds, dict.fromkeys(variant_of(suite, r).guide for r in suite.recipes)):
        jobs = unfinished(suite, name, guide, seed, source, results)
        if jobs:
            taught = source if guide is None or guides is None else guides.guided(guide)
            run_seed(suite, seed, jobs, taught, source, downstream, results)


def guides_of(
    suite: Suite, base: Path, documents: list[Document], source: ap.StoreSource, model: LoadedModel
) -> Guides | None:
    if suite.guides is None:
        return None
    paths = {key: found(getattr(suite.guides, key), base) for key in ("rated", "language_model")}
    return Guides(suite.guides.model_copy(update=paths), documents, source, model)


def unfinished(
    suite: Suite, name: str, guide: str | None, seed: int, source: ap.StoreSource, results: Path
) -> dict[str, Job]:
    """The rows of a seed and a guide that are missing, by the name of their run."""
    done, content = {current_key(row) for row in rows_in(results).values()}, content_of(source)
    jobs = {
        f"{recipe}-k{k:g}": identify(suite, name, recipe, k, seed, content)
        for recipe, k in combinations(suite)
        if variant_of(suite, recipe).guide == guide
    }
    return {run: job for run, job in jobs.items() if job[0] not in done}


def variant_of(suite: Suite, name: str) -> Variant:
    """What stands behind a name of the suite."""
    return suite.variants.get(name, Variant(recipe=name))


def combinations(suite: Suite) -> Iterator[tuple[str, float]]:
    """Every name of the suite with each of its budgets."""
    return ((name, k) for name in suite.recipes for k in suite.k if k in (variant_of(suite, name).k or suite.k))


def content_of(source: ap.Source) -> dict[str, Any]:
    """What the activations are, wherever they lie."""
    return {key: source.describe()[key] for key in ("fingerprint", "rows", "context", "dtype", "d_in")}


def run_of(suite: Suite, name: str, d_in: int, k: float, seed: int) -> ap.RunConfig:
    """The full config behind a name of the suite."""
    variant = variant_of(suite, name)
    run = ap.recipe(variant.recipe).make(d_in, suite.d_sae or suite.expansion * d_in, k, seed)
    return ap.RunConfig.parse(merged(run.model_dump(mode="json"), variant.set), name) if variant.set else run


def merged(data: Any, changes: Any) -> Any:
    """``data`` with ``changes`` put in; what is not a group of keys on both sides is replaced whole."""
    if not (isinstance(data, dict) and isinstance(changes, dict)):
        return changes
    return data | {key: merged(data.get(key), value) for key, value in changes.items()}


def identify(suite: Suite, name: str, recipe: str, k: float, seed: int, content: dict[str, Any]) -> Job:
    """A row's key and everything that the key stands for (paths as the config writes them)."""
    d_in = int(content["d_in"])
    run = run_of(suite, recipe, d_in, k, seed)
    identity = {
        "source": suite.sources[name].model_dump(mode="json"),
        "content": content,
        "heldout": suite.heldout,
        "run": run.model_dump(mode="json"),
        "train": suite.train.model_copy(update={"seed": seed}).model_dump(mode="json"),
        "evaluate_tokens": suite.evaluate_tokens,
        "downstream_tokens": suite.downstream_tokens,
    }
    if (guide := variant_of(suite, recipe).guide) is not None:
        assert suite.guides is not None
        identity["guide"] = {"name": guide, **suite.guides.model_dump(mode="json")}
    return key_of(identity), {
        "source": name,
        "recipe": recipe,
        "k": k,
        "seed": seed,
        "config": identity,
    }


def key_of(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def current_key(row: dict[str, Any]) -> str:
    """A row's key as this version of the package would give it: its configs may have got fields since."""
    config = row["config"]
    run, train = ap.RunConfig.rewritten(config["run"]), ap.TrainConfig.rewritten(config["train"])
    return key_of({**config, "run": run, "train": train})


def run_seed(
    suite: Suite,
    seed: int,
    jobs: dict[str, Job],
    taught: ap.Source,
    source: ap.StoreSource,
    downstream: Downstream,
    results: Path,
) -> None:
    """Train the missing rows of a seed together, then evaluate and append them one by one.

    Args:
        taught: ``source``, with the targets of the guide if there is one.
    """
    if not jobs:
        return
    configs = {run: ap.RunConfig.parse(identity["config"]["run"], run) for run, (_, identity) in jobs.items()}
    settings = suite.train.model_copy(update={"seed": seed})
    configs, out = training_of(configs, settings, taught)
    saes = ap.train(configs, taught, out, settings, progress=True)
    for run, sae in saes.items():
        if run not in jobs:
            continue
        key, identity = jobs[run]
        measures = ap.evaluate(sae, source, limit=suite.evaluate_tokens) | downstream.of(sae)
        training, calibration = sae.metadata["training"], sae.metadata["calibration"]
        row = {
            "key": key,
            **identity,
            "measures": measures,
            "l0_train": training["l0_train"],
            "dead": training["dead"],
            "train_tokens_per_s": training["tokens_per_s"],
            "calibration": calibration,
            "version": ap.__version__,
        }
        append(results, row)


def training_of(
    configs: dict[str, ap.RunConfig], settings: ap.TrainConfig, source: ap.Source
) -> tuple[dict[str, ap.RunConfig], Path]:
    """A training that already has these runs (a kill may have come while it was evaluated), or a new one."""
    wanted = {run: config.model_dump(mode="json") for run, config in configs.items()}
    targets = source.describe().get("targets")
    for plan in sorted(CACHE.glob("runs-*/train.json")):
        known = json.loads(plan.read_text())
        known["settings"] = ap.TrainConfig.rewritten(known["settings"])
        known["runs"] = {run: ap.RunConfig.rewritten(config) for run, config in known["runs"].items()}
        same_data = content_of(source).items() <= known["source"].items()
        same_data &= known["source"].get("targets") == targets
        if (
            same_data
            and known["settings"] == settings.model_dump(mode="json")
            and wanted.items() <= known["runs"].items()
        ):
            return {run: ap.RunConfig.parse(config, run) for run, config in known["runs"].items()}, plan.parent
    identity = [wanted, settings.model_dump(mode="json"), content_of(source), *([targets] if targets else [])]
    text = json.dumps(identity, sort_keys=True)
    return configs, CACHE / f"runs-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval over seeds (Student's t)."""
    found = over_seeds(values)
    return found.mean, math.nan if found.half is None else found.half


Rows = dict[tuple[str, str, float], list[dict[str, Any]]]
"""Rows of this suite's settings by source, recipe and k, by seed."""


def rows_of(suite: Suite, rows: dict[str, dict[str, Any]]) -> Rows:
    """Those of ``rows`` that the suite would give today."""
    groups: Rows = defaultdict(list)
    for row in sorted(rows.values(), key=lambda row: int(row["seed"])):
        if (
            row["source"] not in suite.sources
            or row["recipe"] not in suite.recipes
            or row["seed"] not in suite.seeds
        ):
            continue
        content = row["config"]["content"]
        key, _ = identify(suite, row["source"], row["recipe"], row["k"], row["seed"], content)
        if key == current_key(row):
            groups[row["source"], row["recipe"], row["k"]].append(row)
    return groups


def table(suite: Suite, rows: dict[str, dict[str, Any]], against: Sequence[str]) -> str:
    """Markdown: a line per source, recipe and k, with 95 % intervals over seeds; then the differences."""
    groups = rows_of(suite, rows)
    lines = [
        "| source | recipe | k | seeds | L0, frozen (by seed) | largest miss / promise | FVU | cosine "
        "| never fires | CE score or hidden error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for source in suite.sources:
        for recipe, k in combinations(suite):
            if group := groups.get((source, recipe, k)):
                lines.append(table_line(source, recipe, k, [row["measures"] for row in group]))
    fronts = fronts_of(groups)
    for number, first in enumerate(against):
        lines += [
            "",
            f"| source | k | recipe | at L0 | FVU, difference to {first} at equal measured L0, paired by seed |",
            "|---|---|---|---|---|",
        ]
        for source in suite.sources:
            for recipe, k in combinations(suite):
                if recipe not in against[: number + 1]:
                    lines += paired_line(fronts, source, k, first, recipe)
    return "\n".join(lines)


Front = dict[float, tuple[float, float]]
"""Measured L0 and FVU of one recipe on one source with one seed, by k."""


Fronts = dict[tuple[str, str, int], Front]
"""The fronts by source, recipe and seed."""


def fronts_of(groups: Rows) -> Fronts:
    fronts: Fronts = defaultdict(dict)
    for (source, recipe, k), rows in groups.items():
        for row in rows:
            fronts[source, recipe, row["seed"]][k] = row["measures"]["l0"], row["measures"]["fvu"]
    return fronts


class Difference(NamedTuple):
    """How much more one recipe leaves unexplained than another at equal measured L0, paired by seed.

    Attributes:
        at: the mean L0 at which they were compared.
        share: of the mean of the other's FVU.
    """

    at: float
    fvu: Interval
    share: Interval


def difference(fronts: Fronts, source: str, k: float, first: str, other: str) -> Difference | None:
    """That of ``other`` to ``first`` over the seeds that both have; None below two of them.

    Measured at the L0 of the other, between two points of the first's front; where that does not reach so far,
    at the L0 of the first, between two points of the other's.
    """
    differences, references, places = [], [], []
    for seed in sorted({seed for name, recipe, seed in fronts if (name, recipe) == (source, other)}):
        ours, theirs = fronts[source, other, seed], fronts.get((source, first, seed), {})
        if k not in ours or k not in theirs:
            continue
        for l0 in (ours[k][0], theirs[k][0]):
            pair = at_l0(sorted(ours.values()), l0), at_l0(sorted(theirs.values()), l0)
            if pair[0] is not None and pair[1] is not None:
                differences.append(pair[0] - pair[1])
                references.append(pair[1])
                places.append(l0)
                break
    if len(differences) < 2:
        return None
    reference = statistics.fmean(references)
    shares = [difference / reference for difference in differences]
    return Difference(statistics.fmean(places), over_seeds(differences), over_seeds(shares))


def paired_line(fronts: Fronts, source: str, k: float, first: str, other: str) -> list[str]:
    """A line of the table of differences, if there is one."""
    found = difference(fronts, source, k, first, other)
    if found is None:
        return []
    fvu = f"{found.fvu.mean:+.4f} ± {found.fvu.half:.4f} ({found.share.mean:+.1%})"
    return [f"| {source} | {k:g} | {other} | {found.at:.2f} | {fvu} |"]


def table_line(source: str, recipe: str, k: float, measures: list[dict[str, Any]]) -> str:
    def cell(name: str, digits: int) -> str:
        mean, half = interval([m[name] for m in measures])
        return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

    misses = [(abs(m["l0"] - k), 0.02 * k + 2 * m["l0_se"]) for m in measures]
    worst = max(misses, key=lambda pair: pair[0] / pair[1])
    downstream = "ce_score" if "ce_score" in measures[0] else "hidden_error"
    l0 = ", ".join(f"{m['l0']:.2f} (se {m['l0_se']:.2f})" for m in measures)
    return (
        f"| {source} | {recipe} | {k:g} | {len(measures)} | {l0} | {worst[0]:.2f} / {worst[1]:.2f} "
        f"| {cell('fvu', 4)} | {cell('cosine', 4)} | {cell('never_fires', 4)} "
        f"| {downstream} {cell(downstream, 4)} |"
    )


if __name__ == "__main__":
    main()
