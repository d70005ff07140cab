"""Train recipes on tokens whose features are known; compare each token's k, and the dictionary, with the truth.

    python benchmarks/synthetic.py                                   # goes on where it was stopped
    python benchmarks/synthetic.py --recipes soft_sae --seed 0       # any recipe; one seed
    python benchmarks/synthetic.py --recipes soft_sae:allocator.budget.estimator=own    # with a setting changed
    python benchmarks/synthetic.py --table                           # Markdown from the rows there are

A seed gives dictionary, tokens, their order and the initial weights. Every recipe is trained at the true mean
number of features per token. Rows are appended to ``benchmarks/results/synthetic.jsonl``, each keyed by a hash
of all that it depends on; trainings lie in ``benchmarks/.cache`` and may be deleted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from quality import interval
from rows import CACHE, HERE, append, rows_in

import apportion as ap
from apportion.evaluate import reblock
from apportion.metrics import recovered, spearman
from apportion.recipes import adjusted

RESULTS = HERE / "results" / "synthetic.jsonl"
RECIPES, SEEDS = "token_choice,mutual_choice", (0, 1, 2)
TRUTH = ap.SyntheticConfig(d_in=128, n_features=512, k=16, k_max=64, n_tokens=1_250_000)
D_SAE, HELD_OUT = 1024, 0.2
TRAIN = ap.TrainConfig(n_tokens=1_000_000, batch_size=512)  # at 2,048, too few steps to find the features
EVALUATE_TOKENS = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", default=RECIPES, help="names, separated by commas")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--table", action="store_true", help="print Markdown from the rows there are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    recipes = arguments.recipes.split(",")
    seeds = SEEDS if arguments.seed is None else (arguments.seed,)
    try:
        if arguments.table:
            print(table(recipes, seeds, rows_in(arguments.results)))
            return
        for seed in seeds:
            for recipe in recipes:
                key, identity = identify(recipe, seed)
                if key not in current(rows_in(arguments.results)):
                    append(arguments.results, run(key, identity))
    except ap.ApportionError as error:
        sys.exit(f"synthetic: {error}")


def identify(recipe: str, seed: int) -> tuple[str, dict[str, Any]]:
    """A row's key and everything that the key stands for."""
    config = {
        "source": TRUTH.model_copy(update={"seed": seed}).model_dump(mode="json"),
        "heldout": HELD_OUT,
        "run": run_of(recipe, seed).model_dump(mode="json"),
        "train": TRAIN.model_copy(update={"seed": seed}).model_dump(mode="json"),
        "evaluate_tokens": EVALUATE_TOKENS,
    }
    return key_of(config), {"recipe": recipe, "seed": seed, "config": config}


def key_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def current(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by the keys that this version of the package gives them: their configs may have got fields since."""
    found = {}
    for row in rows.values():
        config = row["config"]
        run, train = ap.RunConfig.rewritten(config["run"]), ap.TrainConfig.rewritten(config["train"])
        found[key_of({**config, "run": run, "train": train})] = row
    return found


def run_of(name: str, seed: int) -> ap.RunConfig:
    """The config behind ``RECIPE`` or ``RECIPE:FIELD=VALUE``."""
    recipe, _, setting = name.partition(":")
    run = ap.recipe(recipe).make(TRUTH.d_in, D_SAE, TRUTH.k, seed)
    return adjusted(run, recipe, [f"{recipe}.{setting}"], [recipe]) if setting else run


def run(key: str, identity: dict[str, Any]) -> dict[str, Any]:
    """Train one SAE, or take it from the cache, and measure it."""
    config, recipe = identity["config"], identity["recipe"]
    truth = ap.SyntheticConfig.parse(config["source"], recipe)
    source = ap.SyntheticSource(truth, heldout=config["heldout"])
    runs = {"run": ap.RunConfig.parse(config["run"], recipe)}
    settings = ap.TrainConfig.parse(config["train"], recipe)
    sae = ap.train(runs, source, CACHE / f"synthetic-{key}", settings, progress=True)["run"]
    measures = ap.evaluate(sae, source, limit=config["evaluate_tokens"])
    return {
        "key": key,
        **identity,
        "measures": measures | against_truth(sae, source, config["evaluate_tokens"]),
        "l0_train": sae.metadata["training"]["l0_train"],
        "dead": sae.metadata["training"]["dead"],
        "train_tokens_per_s": sae.metadata["training"]["tokens_per_s"],
        "version": ap.__version__,
    }


@torch.no_grad()
def against_truth(sae: ap.SAE, source: ap.SyntheticSource, limit: int) -> dict[str, float | None]:
    """The true mean number per token, and how well k, and ‖x‖² for comparison, rank tokens by that number (None
    where k is the same for all); the share of true features in the dictionary."""
    k, true, size = [], [], []
    for batch in reblock(source.blocks("evaluate", limit)):
        assert batch.target is not None
        k.append(sae.encode(batch.x).counts())
        true.append(batch.target)
        size.append(batch.x.square().sum(1))
    number = torch.cat(true)
    return {
        "true_l0": float(number.double().mean()),
        "k_rank": spearman(torch.cat(k), number),
        "size_rank": spearman(torch.cat(size), number),
        "recovered": recovered(source.directions, sae.W_dec),
    }


def table(recipes: list[str], seeds: tuple[int, ...], rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line per recipe, with 95 % intervals over seeds."""
    lines = [
        f"| recipe at k = {TRUTH.k:g} | seeds | L0 (true) | FVU | rank correlation of k with the true number "
        "| of ‖x‖² with it | true features recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = current(rows)
    for recipe in recipes:
        keys = [identify(recipe, seed)[0] for seed in seeds]
        group = [rows[key]["measures"] for key in keys if key in rows]
        if group:
            cells = [cell(group, name) for name in ("fvu", "k_rank", "size_rank", "recovered")]
            l0 = f"{cell(group, 'l0', 2)} ({cell(group, 'true_l0', 2)})"
            lines.append(f"| {recipe} | {len(group)} | {l0} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(group: list[dict[str, Any]], name: str, digits: int = 4) -> str:
    """Mean and half width of the interval; a dash where the number is not defined."""
    values = [measures[name] for measures in group if measures[name] is not None]
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


if __name__ == "__main__":
    main()
