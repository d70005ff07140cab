"""How a training step grows with d_sae, batch, k and the number of SAEs that are trained on one stream.

    python benchmarks/growth.py            # goes on where it was stopped; rows into results/growth.jsonl
    python benchmarks/growth.py --write    # exponents, tables and plot into docs/speed.md from the rows there are

Each point is ``apportion bench step`` at one size; the base is d_in 768, d_sae 16,384, k 32, batch 2,048.
The plot needs the extra ``benchmarks``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rows import HERE, append, rows_in
from sections import rewrite

import apportion as ap
from apportion.bench.step import bench_step

RESULTS = HERE / "results" / "growth.jsonl"
PAGE, PLOT = HERE.parent / "docs" / "speed.md", HERE.parent / "docs" / "speed_growth.svg"
RECIPES = ("token_choice", "mutual_choice")
ALONE = '{}.objectives=[{{"kind": "reconstruction"}}]'
"""Without aux-k, whose row would be a second SAE in memory."""
BASE = {"d_sae": 16_384, "batch": 2048, "k": 32}
SWEEPS: dict[str, tuple[int, ...]] = {
    "d_sae": (4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144),
    "batch": (256, 512, 1024, 2048, 4096, 8192),
    "k": (8, 16, 32, 64, 128, 256),
}
TOGETHER = (1, 2, 4)
"""Numbers of SAEs that are trained on one stream."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.write:
        write(rows_in(arguments.results))
        return
    for size in sizes():
        key = "step " + " ".join(f"{name}={value}" for name, value in size.items())
        if key not in rows_in(arguments.results):
            found = {recipe: row_of(recipe, size, arguments.rounds) for recipe in RECIPES}
            append(arguments.results, {"key": key, **size, "threads": torch.get_num_threads(), "rows": found})
    for n in TOGETHER:
        if (key := f"train n={n}") not in rows_in(arguments.results):
            append(arguments.results, {"key": key, "n": n, **whole_run(n)})


def row_of(recipe: str, size: dict[str, int], rounds: int) -> Row:
    """One recipe at a time: with 262,144 features its weights, gradients and Adam's numbers take 6.4 GB."""
    settings = [ALONE.format(recipe)]
    return bench_step([recipe], **size, rounds=rounds, memory=True, settings=settings)[0]


def sizes() -> Iterator[dict[str, int]]:
    """The base, then one of its numbers changed at a time."""
    yield dict(BASE)
    for name, values in SWEEPS.items():
        yield from (BASE | {name: value} for value in values if value != BASE[name])


def whole_run(n: int, d_in: int = 768, d_sae: int = 16_384, n_steps: int = 12, batch: int = 2048) -> Row:
    """A run of ``ap.train`` over n SAEs: seconds of a step, summed over them."""
    x = torch.randn(2 * n_steps * batch, d_in, generator=torch.Generator().manual_seed(0))
    source = ap.TensorSource(x, heldout=0.3)
    configs = {f"{seed}": ap.recipe("token_choice").make(d_in, d_sae, 32, seed) for seed in range(n)}
    settings = ap.TrainConfig(n_tokens=n_steps * batch, batch_size=batch, calibrate_tokens=batch)
    with tempfile.TemporaryDirectory() as folder:
        saes = ap.train(configs, source, folder, settings)
    return {
        "steps": n_steps,
        "per_step_s": sum(batch / sae.metadata["training"]["tokens_per_s"] for sae in saes.values()),
    }


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of log y over log x, by least squares."""
    x, y = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def sweep(rows: dict[str, Row], name: str, recipe: str, field: str) -> list[tuple[float, float]]:
    """(size, value) along one sweep, ascending; sizes that were not measured are missing."""
    found = []
    for row in rows.values():
        at_base = all(row.get(other) == BASE[other] for other in BASE if other != name)
        if name in row and at_base and recipe in row["rows"]:
            found.append((float(row[name]), float(row["rows"][recipe][field])))
    return sorted(found)


def write(rows: dict[str, Row]) -> None:
    lines = []
    for name in SWEEPS:
        lines += [
            f"| {name} | "
            + " | ".join(f"{int(size):,}" for size, _ in sweep(rows, name, RECIPES[0], "ratio"))
            + " |",
        ]
        lines += ["|---" * (1 + len(sweep(rows, name, RECIPES[0], "ratio"))) + "|"]
        for recipe in RECIPES:
            for field, digits, label in (
                ("ratio", 2, "products"),
                ("peak_over_affinities", 2, "peak / affinities"),
            ):
                cells = " | ".join(f"{value:.{digits}f}" for _, value in sweep(rows, name, recipe, field))
                lines.append(f"| `{recipe}`, {label} | {cells} |")
        slopes = [f"`{recipe}` {exponent(sweep(rows, name, recipe, 'step_s')):.2f}" for recipe in RECIPES]
        product = exponent(sweep(rows, name, RECIPES[0], "product_s"))
        lines += [
            "",
            f"Seconds grow as {name} to the power of {', '.join(slopes)}; the product's {product:.2f}.",
            "",
        ]
    together = [rows[f"train n={n}"] for n in TOGETHER if f"train n={n}" in rows]
    if together:
        alone = together[0]["per_step_s"]
        lines += [
            "| SAEs on one stream | seconds a step, all | times one |",
            "|---|---|---|",
        ]
        lines += [
            f"| {row['n']} | {row['per_step_s']:.2f} | {row['per_step_s'] / alone:.2f} |" for row in together
        ]
        lines.append("")
    lines.append(f"![Seconds of a step on log-log axes]({PLOT.name})")
    draw(rows)
    rewrite(PAGE, "growth", "\n".join(lines))


def draw(rows: dict[str, Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SWEEPS), figsize=(11, 3.6), layout="constrained", sharey=True)
    for one, name in zip(axes, SWEEPS, strict=True):
        for number, recipe in enumerate(RECIPES):
            points = sweep(rows, name, recipe, "step_s")
            one.loglog(*zip(*points, strict=True), marker="o", color=f"C{number}", label=recipe)
        points = sweep(rows, name, RECIPES[0], "product_s")
        one.loglog(*zip(*points, strict=True), marker=".", color="0.5", linestyle=":", label="the product alone")
        one.set(xlabel=name)
        one.set_xticks([size for size, _ in points], [_short(int(size)) for size, _ in points])
        one.minorticks_off()
    axes[0].set(ylabel="seconds")
    axes[0].legend(fontsize="small")
    figure.savefig(PLOT)


def _short(size: int) -> str:
    return f"{size // 1024}k" if size >= 1024 else str(size)


if __name__ == "__main__":
    main()
