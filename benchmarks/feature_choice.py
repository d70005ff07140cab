"""What a dictionary's features do, rank by rank, and whether larger affinities matter more.

    python benchmarks/feature_choice.py STORE SAE [SAE ...] --plot FILE.svg [--json FILE]

For each SAE: densities on held-out tokens by rank with the fitted Zipf-Mandelbrot curve, on log-log axes; and the
monotonic importance heuristic (``metrics.MonotonicImportance``) at the start and at the end of its training.
Needs the extra ``benchmarks``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

import apportion as ap
from apportion.activations.scale import input_scale
from apportion.metrics import FeatureDensity, MetricBatch, MonotonicImportance
from apportion.ops.median import geometric_median
from apportion.ops.zipf import ZipfMandelbrot, fit_zipf
from apportion.training import Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("saes", nargs="+")
    parser.add_argument("--heldout", type=float, default=0.3)
    parser.add_argument("--tokens", type=int, default=250_000, help="for densities")
    parser.add_argument("--importance-tokens", type=int, default=8192)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source = ap.StoreSource(arguments.store, heldout=arguments.heldout)
    rows, curves = [], {}
    for path in map(Path, arguments.saes):
        sae = ap.load(path)
        density, fit = densities(sae, source, arguments.tokens)
        curves[path.name] = (density, fit)
        end = importance(sae, source, arguments.importance_tokens, 1.0)
        run, scale = at_the_start(sae, source)
        start = importance(run.sae, source, arguments.importance_tokens, scale)
        rows.append({"sae": path.name, "zipf": fit._asdict(), "start": start, "end": end})
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if arguments.plot:
        plot(curves, arguments.plot)


@torch.no_grad()
def densities(sae: ap.SAE, source: ap.Source, limit: int) -> tuple[torch.Tensor, ZipfMandelbrot]:
    """Falling densities [d_sae] on held-out tokens, and the curve through them."""
    metric = FeatureDensity(sae.d_sae)
    for batch in source.blocks("evaluate", limit):
        metric.update(MetricBatch(batch.x, batch.x, sae.encode(batch.x)))
    density = metric.density().sort(descending=True).values
    return density, fit_zipf(density)


@torch.no_grad()
def importance(sae: ap.SAE, source: ap.Source, limit: int, scale: float) -> dict[str, Any]:
    """The heuristic on held-out tokens under the SAE's own rule."""
    metric = MonotonicImportance(sae.W_dec, sae.b_dec)
    for batch in source.blocks("evaluate", limit):
        trace = sae.trace(batch.x.float() * scale)
        metric.update(MetricBatch(trace.x, trace.x_hat, trace.code))
    return metric.result()


def at_the_start(sae: ap.SAE, source: ap.Source) -> tuple[Run, float]:
    """The SAE as it was before its first step, and its input scale."""
    training = sae.metadata["training"]
    settings = ap.TrainConfig(**training["settings"])
    x = next(source.stream(settings.batch_size, settings.seed)).x.float()
    scale = input_scale(x)
    assert scale == training["scale"]
    return Run(ap.RunConfig.parse(training["config"], "run"), geometric_median(x * scale)), scale


def plot(curves: dict[str, tuple[torch.Tensor, ZipfMandelbrot]], path: Path) -> None:
    """Rank against density on log-log axes, data and fit."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (name, (density, fit)) in enumerate(curves.items()):
        rank = torch.arange(1, len(density) + 1)
        alive = density > 0
        axes.loglog(rank[alive], density[alive], color=f"C{number}", label=name, linewidth=1.5)
        axes.loglog(rank, fit.at(rank), color=f"C{number}", linestyle=":", linewidth=1)
    axes.set(xlabel="rank of the feature", ylabel="share of held-out tokens it fires on", ylim=(1e-6, 1))
    axes.legend(title="data; dotted: fitted curve", fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
