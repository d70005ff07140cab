"""All recipes in one place: the tables and two plots of docs/results.md, and how the baselines meet their budget.

    python benchmarks/overview.py    # rewrites these parts of the pages; the plots need the extra `benchmarks`

Rows come from ``quality.py`` (error at equal measured L0; with ``baselines.json`` budgets), ``allocation.py``
(efficiency) and ``synthetic.py`` (truth). A recipe without rows has no line, a budget without rows an empty cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import allocation
import quality
import synthetic
from quality import Fronts, Rows, Suite, Variant, difference, fronts_of, rows_of
from rows import HERE, rows_in
from sections import rewrite

from apportion.metrics.intervals import Interval, over_seeds

CONFIG, PAGE = HERE / "quality.json", HERE.parent / "docs" / "results.md"
FRONTS, EFFICIENCIES = PAGE.with_name("results_fvu.svg"), PAGE.with_name("results_efficiency.svg")
BASELINES, BUDGETS = HERE / "baselines.json", PAGE.with_name("baselines.md")
FIRST = "token_choice"
"""The recipe that others are compared with: one k for all."""

Cells = dict[tuple[str, str, float], Interval]
"""A measure with its interval over seeds, by source, recipe and k."""


def main() -> None:
    suite = Suite.parse(json.loads(CONFIG.read_text()), str(CONFIG))
    groups = rows_of(suite, rows_in(quality.RESULTS))
    differences, efficiencies = shares(suite, fronts_of(groups), groups), allocated(groups, efficiency)
    lines: list[str] = []
    for source in suite.sources:
        lines += [*table_of_errors(suite, groups, differences, source), ""]
    rewrite(PAGE, "errors", "\n".join([*lines, f"![Difference to {FIRST} over L0]({FRONTS.name})"]))
    efficiencies = {cell: one for cell, one in efficiencies.items() if cell[1] != FIRST}  # 0 by definition
    lines, rest = [], allocated(groups, left)
    for source in suite.sources:
        lines += [*by_budget(suite, source, efficiencies, lambda one: _pm(one, ".2f")), ""]
    lines += ["What the best k per token would still take off each one's error:", ""]
    for source in suite.sources:
        lines += [*by_budget(suite, source, rest, lambda one: _pm(one, ".1%")), ""]
    rewrite(PAGE, "efficiency", "\n".join([*lines, f"![Efficiency over k]({EFFICIENCIES.name})"]))
    rewrite(PAGE, "features", "\n".join(table_of_features(suite, groups)))
    plain = [name for name in suite.recipes if suite.variants.get(name, Variant(recipe=name)).recipe == name]
    rewrite(PAGE, "synthetic", synthetic.table(plain, synthetic.SEEDS, rows_in(synthetic.RESULTS)))
    baselines = Suite.parse(json.loads(BASELINES.read_text()), str(BASELINES))
    rewrite(BUDGETS, "budgets", "\n".join(table_of_budgets(baselines)))
    draw(suite, differences, FRONTS, f"FVU, difference to {FIRST} at equal L0", 100)
    draw(suite, efficiencies, EFFICIENCIES, "share of the best k's gain", 1)


def shares(suite: Suite, fronts: Fronts, groups: Rows) -> Cells:
    """How much more of the variance each recipe leaves than the first, as a share, at equal measured L0."""
    found = {cell: difference(fronts, cell[0], cell[2], FIRST, cell[1]) for cell in groups if cell[1] != FIRST}
    return {cell: one.share for cell, one in found.items() if one is not None}


def allocated(groups: Rows, measure: Callable[[dict[str, Any]], float | None]) -> Cells:
    """A measure of how the SAEs behind the rows spend their budget, where it is defined for all of them."""
    rows = rows_in(allocation.RESULTS)
    found: Cells = {}
    for cell, group in groups.items():
        values = [measure(rows[row["key"]]["measures"]) for row in group if row["key"] in rows]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[cell] = over_seeds(known)
    return found


def efficiency(measures: dict[str, Any]) -> float | None:
    """What the rule gets of what the best k per token would gain over one k for all."""
    return measures["allocation_efficiency"]


def left(measures: dict[str, Any]) -> float | None:
    """The share of the error that the best k per token would take off, with everything else as it is."""
    if measures["allocation_efficiency"] is None:
        return None  # tokens have hardly a feature left to give them
    return 1 - measures["fvu_oracle"] / measures["fvu"]


def table_of_errors(suite: Suite, groups: Rows, differences: Cells, source: str) -> list[str]:
    """The first recipe's FVU, and the difference of each other to it, by budget."""
    own = {
        (source, FIRST, k): over_seeds([row["measures"]["fvu"] for row in groups[source, FIRST, k]])
        for k in suite.k
        if (source, FIRST, k) in groups
    }
    head, rule, *lines = by_budget(suite, source, differences, lambda one: _pm(one, "+.1%"))
    first = [f"`{FIRST}`, FVU", *(_pm(own.get((source, FIRST, k)), ".4f") for k in suite.k)]
    return [head, rule, _line(first), *lines]


def by_budget(suite: Suite, source: str, cells: Cells, shown: Callable[[Interval], str]) -> list[str]:
    """A line per recipe that has any cell, a column per budget; bold is what an interval sets apart from zero."""
    lines = [_line([source, *(f"k = {k:g}" for k in suite.k)]), "|---" * (1 + len(suite.k)) + "|"]
    for recipe in suite.recipes:
        own = [cells.get((source, recipe, k)) for k in suite.k]
        if any(own):
            lines.append(_line([f"`{recipe}`", *("" if one is None else shown(one) for one in own)]))
    return lines


def table_of_features(suite: Suite, groups: Rows, k: float = 32) -> list[str]:
    """Unused features and what the model makes of the reconstruction, at one budget."""
    heads = [f"{name}, {what}" for name in suite.sources for what in ("never fires", "model")]
    lines = [_line([f"k = {k:g}", *heads]), "|---" * (1 + len(heads)) + "|"]
    for recipe in suite.recipes:
        cells: list[str] = []
        for source in suite.sources:
            measures = [row["measures"] for row in groups.get((source, recipe, k), [])]
            cells += ["", ""] if not measures else [_mean(measures, "never_fires", ".1%"), _downstream(measures)]
        if any(cells):
            lines.append(_line([f"`{recipe}`", *cells]))
    return lines


def table_of_budgets(suite: Suite) -> list[str]:
    """L0 at the end of training and frozen on held-out tokens, beside what is promised there: 2 % and 2 se."""
    groups = rows_of(suite, rows_in(quality.RESULTS.with_name("baselines.jsonl")))
    heads = [f"{name}: {what}" for name in suite.sources for what in ("L0 in training", "frozen", "FVU")]
    lines = [_line(["recipe", "k", *heads]), "|---" * (2 + len(heads)) + "|"]
    for recipe in suite.recipes:
        for k in suite.k:
            cells = [cell for name in suite.sources for cell in _budget(groups.get((name, recipe, k), []), k)]
            if any(cells):
                lines.append(_line([f"`{recipe}`", f"{k:g}", *cells]))
    return lines


def _budget(rows: Sequence[dict[str, Any]], k: float) -> list[str]:
    if not rows:
        return ["", "", ""]
    row, measures = rows[0], rows[0]["measures"]
    met = abs(measures["l0"] - k) <= 0.02 * k + 2 * measures["l0_se"]
    frozen = f"{measures['l0']:.2f} ± {measures['l0_se']:.2f}{'' if met else ' (missed)'}"
    return [f"{row['l0_train']:.2f} ({row['l0_train'] / k:.3f} k)", frozen, f"{measures['fvu']:.4f}"]


def _downstream(measures: Sequence[dict[str, Any]]) -> str:
    causal = "ce_score" in measures[0]
    return _mean(measures, "ce_score", ".4f") if causal else _mean(measures, "hidden_error", ".3f")


def _mean(measures: Sequence[dict[str, Any]], name: str, form: str) -> str:
    return _pm(over_seeds([one[name] for one in measures]), form)


def _pm(one: Interval | None, form: str) -> str:
    if one is None:
        return ""
    half = "" if one.half is None else f" ± {format(one.half, form.lstrip('+'))}"
    return f"{format(one.mean, form)}{half}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(suite: Suite, cells: Cells, path: Path, label: str, times: float) -> None:
    """A panel per source, a line per recipe over k, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(suite.sources), figsize=(11, 4.2), layout="constrained")
    for axes, source in zip(panels, suite.sources, strict=True):
        axes.axhline(0, color="0.6", linewidth=1)
        for number, recipe in enumerate(suite.recipes):
            own = [(k, cells[source, recipe, k]) for k in suite.k if (source, recipe, k) in cells]
            if len(own) < 2:
                continue
            k = [budget * (1 + 0.015 * (number - len(suite.recipes) / 2)) for budget, _ in own]
            halves = [times * (math.nan if one.half is None else one.half) for _, one in own]
            axes.errorbar(k, [times * one.mean for _, one in own], halves, capsize=3, marker="o", label=recipe)
        axes.set(title=source, xlabel="k", xscale="log", xticks=suite.k, xticklabels=[f"{k:g}" for k in suite.k])
        axes.minorticks_off()
    panels[0].set_ylabel(f"{label}, %" if times == 100 else label)
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
