"""Of what the best k per token would gain over one k for all: the share that each SAE of the quality suite gets.

    python benchmarks/allocation.py benchmarks/quality.json    # goes on where it was stopped

Rows are appended to ``benchmarks/results/allocation.jsonl`` under the key of the suite's row that they belong to.
SAEs come from ``benchmarks/.cache``; a row whose training was deleted from there is skipped and counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from quality import RESULTS as QUALITY
from quality import Suite, content_of, rows_of
from rows import CACHE, HERE, append, rows_in

import apportion as ap

RESULTS = HERE / "results" / "allocation.jsonl"
TOKENS, K_MAX = 16_384, 256
MEASURES = (
    *("tokens", "l0", "fvu", "fvu_uniform", "fvu_oracle", "fvu_in_order", "allocation_efficiency"),
    *("k_correlation", "gain_correlation", "k_max", "beyond_k_max", "short_of_uniform"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--source", help="only this source; others may run in processes of their own")
    parser.add_argument("--seed", type=int, help="only this seed, likewise")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    suite = Suite.parse(json.loads(arguments.config.read_text()), str(arguments.config))
    missing = 0
    for (name, recipe, k), rows in rows_of(suite, rows_in(QUALITY)).items():
        if arguments.source not in (None, name):
            continue
        store = CACHE / f"store-{name}-{suite.sources[name].digest()}"
        source = ap.StoreSource(store, heldout=suite.heldout, verify=False)
        for row in rows:
            if row["key"] in rows_in(arguments.results) or arguments.seed not in (None, row["seed"]):
                continue
            sae = trained(row, f"{recipe}-k{k:g}", source)
            if sae is None:
                missing += 1
                continue
            found = ap.evaluate(sae, source, limit=TOKENS, oracle=K_MAX)
            measures = {measure: found[measure] for measure in MEASURES}
            facts = {key: row[key] for key in ("key", "source", "recipe", "k", "seed")}
            append(arguments.results, {**facts, "measures": measures, "version": ap.__version__})
    if missing:
        print(f"allocation: {missing} SAEs are no longer in {CACHE}; make quality trains them", file=sys.stderr)


def trained(row: dict[str, Any], run: str, source: ap.Source) -> ap.SAE | None:
    """The SAE that a row was measured on: of its run, on its activations, calibrated to the same numbers."""
    config, content = ap.RunConfig.rewritten(row["config"]["run"]), content_of(source)
    for plan in sorted(CACHE.glob("runs-*/train.json")):
        known = json.loads(plan.read_text())
        if not (content.items() <= known["source"].items() and run in known["runs"]):
            continue
        settings = ap.TrainConfig.rewritten(known["settings"])
        same = ap.RunConfig.rewritten(known["runs"][run]) == config
        same &= settings == ap.TrainConfig.rewritten(row["config"]["train"])
        if same and (plan.parent / run / "sae.json").exists():
            sae = ap.load(plan.parent / run)
            if sae.metadata["calibration"] == row["calibration"]:
                return sae
    return None


if __name__ == "__main__":
    main()
