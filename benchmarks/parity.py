"""Our SAEs beside those of sae-lens: the same activations, initial weights, batches and learning rate.

    python benchmarks/parity.py                    # goes on where it was stopped; needs the extra `peers`
    python benchmarks/parity.py --trial            # a minute's worth of everything, into .cache
    python benchmarks/parity.py --table            # Markdown from the rows there are

Activations are those of the quality suite's first source (``make quality`` captures them), or of any ``--store``.
Rows are appended to ``benchmarks/results/parity.jsonl`` as they come, keyed by a hash of all they depend on.
What is held equal and what is not: ``docs/baselines.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from rows import CACHE, HERE, append, rows_in
from torch import Tensor

import apportion as ap
from apportion.activations.scale import input_scale
from apportion.compare.fronts import at_l0
from apportion.config import Config
from apportion.errors import InvalidInput
from apportion.metrics.base import Codec
from apportion.ops.median import geometric_median
from apportion.schedules import WarmupDecay
from apportion.training import Run

RESULTS, TRIAL_RESULTS = HERE / "results" / "parity.jsonl", CACHE / "parity-trial.jsonl"
WARMUP, DECAY = 0.05, 0.2
PRICE_WARMUP = 0.05
"""Share of the run over which their coefficients rise, as in their tutorial."""
ABOUT = 0.03
"""Ours is measured at this share more and less than their L0: wider than the 2 % within which k is met."""
CLOSE = 0.05
"""Logarithm of L0 over k that needs no further search."""
NEAREST = 1
"""How many of their runs ours is compared with, those whose L0 is nearest to k first."""


class Setting(Config):
    """What both sides share."""

    d_sae: int = 2048
    k: int = 32
    n_steps: int = 2000
    batch_size: int = 512
    lr: float = 1e-3
    seed: int = 0
    heldout: float = 0.3
    calibrate_tokens: int = 250_000
    evaluate_tokens: int = 250_000
    searches: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _same_schedule(self) -> Setting:
        if self.n_steps % 20:
            raise ValueError(
                f"n_steps = {self.n_steps}; give a multiple of 20, for sae-lens rises and falls in whole steps"
            )
        return self


TRIAL = Setting(
    d_sae=256, k=8, n_steps=40, batch_size=256, calibrate_tokens=4096, evaluate_tokens=4096, searches=2
)


@dataclass(frozen=True)
class Comparison:
    """One of our recipes and one of their architectures.

    Attributes:
        price: the coefficient that stands for k where they have no k, without ``_coefficient``.
        alike: their settings that have a counterpart here, given its value (SAE and trainer); None for theirs.
    """

    recipe: str
    architecture: str
    price: str | None = None
    alike: Callable[[ap.RunConfig, Setting], tuple[dict[str, Any], dict[str, Any]]] | None = None

    @property
    def name(self) -> str:
        return f"{self.architecture}, alike" if self.alike else self.architecture


def same_death(run: ap.RunConfig, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"dead_feature_window": run.dead_after // setting.batch_size}


def same_thresholds(run: ap.RunConfig, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    rule, length = run.sae.allocator.model_dump(), math.sqrt(run.sae.d_in)
    return {
        "jumprelu_init_threshold": rule["theta"] * length,
        "jumprelu_bandwidth": rule["width"] * length,
    }, {}


COMPARISONS = (
    Comparison("token_choice", "topk"),
    Comparison("mutual_choice", "batchtopk"),
    Comparison("jump_relu", "jumprelu", price="l0"),
    Comparison("gated", "gated", price="l1"),
    Comparison("token_choice", "topk", alike=same_death),
    Comparison("mutual_choice", "batchtopk", alike=same_death),
    Comparison("jump_relu", "jumprelu", price="l0", alike=same_thresholds),
)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, help="captured activations; default: the quality suite's of MiniLM")
    parser.add_argument("--only", help="only these of their architectures, as topk,gated")
    parser.add_argument("--trial", action="store_true", help="small and short, to see that everything runs")
    parser.add_argument("--table", action="store_true", help="print Markdown from the rows there are")
    parser.add_argument("--results", type=Path)
    for name in ("d_sae", "k", "n_steps", "batch_size", "lr", "seed"):
        field = Setting.model_fields[name]
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(field.default), help=f"{field.default}")
    arguments = parser.parse_args()
    given = {
        name: value for name in Setting.model_fields if (value := getattr(arguments, name, None)) is not None
    }
    results = arguments.results or (TRIAL_RESULTS if arguments.trial else RESULTS)
    try:
        setting = Setting.parse((TRIAL if arguments.trial else Setting()).model_dump() | given, "parity")
        chosen = [c for c in COMPARISONS if arguments.only is None or c.architecture in arguments.only.split(",")]
        if not arguments.table:
            source = open_store(arguments.store, setting, arguments.trial)
            for comparison in chosen:
                Bench(setting, source, results).run(comparison)
        print(table(setting, rows_in(results)))
    except ap.ApportionError as error:
        sys.exit(f"parity: {error}")


def open_store(path: Path | None, setting: Setting, trial: bool) -> ap.StoreSource:
    """The activations. Raises ``InvalidInput`` if none were captured yet."""
    found = [path] if path else sorted(CACHE.glob("store-minilm-3-*"))
    if not found:
        raise InvalidInput(f"there is no store in {CACHE}; run `make quality` until it has one, or give --store")
    rows = 65_536 if trial else None
    return ap.StoreSource(found[-1], heldout=setting.heldout, max_rows=rows, verify=not trial)


class Bench:
    """Trains and measures both sides; what is in the results already is not done again."""

    def __init__(self, setting: Setting, source: ap.StoreSource, results: Path) -> None:
        self.setting, self.source, self.results = setting, source, results
        described = source.describe()
        self.content = {key: described[key] for key in ("fingerprint", "rows", "context", "dtype", "d_in")}

    def run(self, comparison: Comparison) -> None:
        """Theirs at coefficients around k, then ours at the L0 that each of the nearest came to."""
        theirs: dict[float, Row] = {}

        def l0_of(coefficient: float) -> float:
            theirs[coefficient] = self.theirs(comparison, coefficient)
            return float(theirs[coefficient]["measures"]["l0"])

        if comparison.price is None:
            l0_of(0.0)
        else:
            search(self.setting.k, l0_of, self.setting.searches)
        for row in nearest(list(theirs.values()), self.setting.k):
            self.ours(comparison, row)

    def theirs(self, comparison: Comparison, coefficient: float) -> Row:
        """The row of one of their trainings."""
        run, sae, trainer = self.run_config(comparison, self.setting.k), {}, self.trainer_settings()
        if comparison.price is None:
            sae |= {"k": self.setting.k}
        else:
            sae |= {
                f"{comparison.price}_coefficient": coefficient,
                f"{comparison.price}_warm_up_steps": round(PRICE_WARMUP * self.setting.n_steps),
            }
        if comparison.alike is not None:
            more_sae, more_trainer = comparison.alike(run, self.setting)
            sae, trainer = sae | more_sae, trainer | more_trainer
        identity = {
            "side": "sae-lens",
            "version": version("sae-lens"),
            "architecture": comparison.architecture,
            "sae": sae,
            "trainer": trainer,
            "initial": run.model_dump(mode="json"),
        }
        facts = {"comparison": comparison.name, "coefficient": coefficient}
        return self.row(identity, facts, lambda: self.train_theirs(comparison, run, sae, trainer))

    def ours(self, comparison: Comparison, theirs: Row) -> Row:
        """The row of our training that is compared with one of theirs."""
        l0 = theirs["measures"]["l0"]
        top, bottom = (min(round(l0 * (1 + part), 2), self.setting.d_sae) for part in (ABOUT, -ABOUT))
        # A price ends a hair above its k, and a threshold of zero lets no more through: train at the upper end.
        k = self.setting.k if comparison.price is None else top
        run, levels = self.run_config(comparison, k), [] if l0 == k else sorted({top, bottom} - {k})
        dump = run.model_dump(mode="json")
        identity = {"side": "apportion", "run": dump, "levels": levels, "against": theirs["key"]}
        facts = {"comparison": comparison.name, "against": theirs["key"], "k": k}
        return self.row(identity, facts, lambda: self.train_ours(run, levels))

    def row(self, identity: dict[str, Any], facts: dict[str, Any], make: Callable[[], Row]) -> Row:
        """The row of that identity: the one there is, or a new one, made and appended."""
        identity = {"content": self.content, "setting": self.setting.model_dump(mode="json"), **identity}
        key = digest(identity)
        done = current(rows_in(self.results))
        if key not in done:
            print(f"{identity['side']}: {facts}", file=sys.stderr)
            versions = {name: version(name) for name in ("apportion", "sae-lens", "torch")}
            done[key] = {"key": key, **facts, **make(), "versions": versions, "config": identity}
            append(self.results, done[key])
        return done[key]

    def run_config(self, comparison: Comparison, k: float) -> ap.RunConfig:
        """The recipe with the learning rate and the start that both sides share."""
        setting = self.setting
        run = ap.recipe(comparison.recipe).make(self.source.d_in, setting.d_sae, k, setting.seed)
        lr = WarmupDecay(peak=setting.lr, warmup=WARMUP, decay=DECAY)
        return run.model_copy(update={"lr": lr, "b_enc": 0.0})

    def trainer_settings(self) -> dict[str, Any]:
        """The same length, batches and learning rate in the words of sae-lens."""
        setting = self.setting
        return {
            "total_training_samples": setting.n_steps * setting.batch_size,
            "train_batch_size_samples": setting.batch_size,
            "lr": setting.lr,
            "lr_end": setting.lr,
            "lr_warm_up_steps": round(WARMUP * setting.n_steps),
            "lr_decay_steps": round(DECAY * setting.n_steps),
        }

    def batches(self) -> Iterator[Tensor]:
        """The training batches, as ``ap.train`` gets them."""
        stream = self.source.stream(self.setting.batch_size, self.setting.seed)
        try:
            while True:
                yield next(stream).x
        finally:
            stream.close()

    def train_theirs(
        self, comparison: Comparison, run: ap.RunConfig, sae: dict[str, Any], trainer: dict[str, Any]
    ) -> Row:
        # A minute of imports, which a table does not need.
        from sae_lens_peer import train_peer

        first = next(self.batches())
        scale = input_scale(first)
        began = time.perf_counter()
        peer = train_peer(
            comparison.architecture, initial(run, first * scale), self.batches(), scale, sae, trainer
        )
        seconds = (time.perf_counter() - began) / self.setting.n_steps
        return {"measures": self.measure(peer), "seconds_per_step": seconds}

    def train_ours(self, run: ap.RunConfig, levels: list[float]) -> Row:
        setting = self.setting
        train = ap.TrainConfig(
            n_tokens=setting.n_steps * setting.batch_size,
            batch_size=setting.batch_size,
            seed=setting.seed,
            calibrate_tokens=setting.calibrate_tokens,
        )
        out = (
            CACHE / f"parity-{digest([self.content, run.model_dump(mode='json'), train.model_dump(mode='json')])}"
        )
        sae = ap.train({"ours": run}, self.source, out, train, progress=True)["ours"]
        front = [{"k": sae.k, **self.measure(sae)}]
        for level in levels:
            fitted = ap.calibrate(sae, self.source, level, limit=setting.calibrate_tokens)
            front.append({"k": level, **self.measure(fitted)})
        seconds = setting.batch_size / sae.metadata["training"]["tokens_per_s"]
        return {"front": front, "seconds_per_step": seconds}

    def measure(self, sae: Codec) -> Row:
        found = ap.evaluate(sae, self.source, limit=self.setting.evaluate_tokens)
        return {name: found[name] for name in ("l0", "l0_se", "fvu", "never_fires", "tokens")}


def initial(config: ap.RunConfig, x: Tensor) -> ap.SAE:
    """The SAE that ``ap.train`` starts from, if ``x`` is its first batch, scaled."""
    run = Run(config, torch.zeros(config.sae.d_in))
    run.begin(geometric_median(x))
    return run.sae


def search(k: float, l0_of: Callable[[float], float], most: int) -> None:
    """Try coefficients from 1 on by factors of four until two stand on both sides of k, then one between them.

    A straight line in the logarithms gives the last one. At most ``most`` in all, and none after one that comes
    to k within ``CLOSE``.
    """
    seen = {1.0: max(l0_of(1.0), 1e-2)}
    while len(seen) < most and all(abs(math.log(l0 / k)) > CLOSE for l0 in seen.values()):
        dense = max((c for c, l0 in seen.items() if l0 > k), default=None)
        sparse = min((c for c, l0 in seen.items() if l0 <= k), default=None)
        if dense is not None and sparse is not None:
            share = math.log(k / seen[dense]) / math.log(seen[sparse] / seen[dense])
            l0_of(float(f"{dense ** (1 - share) * sparse**share:.3g}"))
            return
        coefficient = 4 * dense if dense is not None else (sparse or 1.0) / 4
        seen[coefficient] = max(l0_of(coefficient), 1e-2)


def nearest(rows: list[Row], k: float) -> list[Row]:
    """The runs of theirs whose L0 is nearest to k, the nearest first; one that hardly fires is none."""
    alive = [row for row in rows if row["measures"]["l0"] >= 1]
    return sorted(alive, key=lambda row: abs(math.log(row["measures"]["l0"] / k)))[:NEAREST]


def current(rows: dict[str, Row]) -> dict[str, Row]:
    """Rows by the keys that this version of the package gives them: their configs may have got fields since."""
    keys: dict[str, str] = {}
    found = {}
    for row in sorted(rows.values(), key=lambda row: "against" in row):  # what is named comes before who names it
        config = dict(row["config"])
        for name in {"run", "initial"} & config.keys():
            config[name] = ap.RunConfig.rewritten(config[name])
        if "against" in row:
            config["against"] = keys[row["against"]]
        key = digest(config)
        keys[row["key"]] = key
        found[key] = (
            row | {"key": key, "config": config} | ({"against": config["against"]} if "against" in row else {})
        )
    return found


def digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def table(setting: Setting, rows: dict[str, Row]) -> str:
    """Markdown: a line for each of their runs that ours was compared with, the nearest to k first."""
    mine = [row for row in current(rows).values() if row["config"]["setting"] == setting.model_dump(mode="json")]
    ours = {row["against"]: row for row in mine if row["config"]["side"] == "apportion"}
    lines = [
        "| ours | theirs | coefficient | L0, theirs | FVU, theirs | k, ours | L0, ours | FVU, ours "
        "| FVU, ours at their L0 | to theirs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for comparison in COMPARISONS:
        theirs = [row for row in mine if row["key"] in ours and row["comparison"] == comparison.name]
        lines += [table_line(comparison, row, ours[row["key"]]) for row in nearest(theirs, setting.k)]
    versions = sorted({json.dumps(row["versions"]) for row in mine})
    return "\n".join([*lines, "", f"Setting: {setting.model_dump(mode='json')}", *versions])


def table_line(comparison: Comparison, theirs: Row, ours: Row) -> str:
    measured, own = theirs["measures"], ours["front"][0]
    equal = at_l0(sorted((point["l0"], point["fvu"]) for point in ours["front"]), measured["l0"])
    result = "– | –" if equal is None else f"{equal:.4f} | {equal / measured['fvu'] - 1:+.1%}"
    coefficient = "–" if comparison.price is None else f"{theirs['coefficient']:g}"
    return (
        f"| {comparison.recipe} | {comparison.name} | {coefficient} | {measured['l0']:.2f} "
        f"| {measured['fvu']:.4f} | {ours['k']:g} | {own['l0']:.2f} | {own['fvu']:.4f} | {result} |"
    )


if __name__ == "__main__":
    main()
