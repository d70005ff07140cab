"""The charts: fronts, efficiency, features per token, densities, training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..compare import Comparison
from ..compare.base import Point
from ..compare.tables import TITLES, UNKNOWN, caveats_of, cell_of
from ..errors import InvalidInput
from ..ops.zipf import fit_zipf
from ..training.caveats import marked
from .drawing import Chart, Look, hollow, line, log_axis, short, trace
from .survey import Survey

BINS, RANKS = 72, 160
"""Bars of a histogram of k, about, and points of a curve of densities."""
MARKS = 6
"""Symbols on a curve of many points."""

FRONTS = {
    "fvu": (
        "What a reconstruction leaves unexplained of the activations’ variance, against the features it "
        "spends. Lower and further left is better."
    ),
    "ce_score": (
        "How much of the model’s next-token loss is kept when reconstructions take the place of "
        "activations: 1 is all of it, 0 no more than zeros keep."
    ),
    "hidden_error": (
        "How far the model’s last hidden state moves when reconstructions take the place of activations. "
        "Lower is better."
    ),
}
"""The measures that are drawn against L0, and how each is read."""

EFFICIENCY = (
    "Encoder, decoder and each token’s order of features stay as they are, and only k varies. At the same "
    "L0, 0 % is the error of one k for every token and 100 % that of the best k for each; below 0 %, "
    "giving every token the same would have been better."
)
BUDGETS = (
    "How many held-out tokens get how many features. A single bar means that every token gets the same. "
    "Each row is scaled to its tallest bar."
)
DENSITIES = (
    "Features from the densest to the rarest, with the curve C / (rank + β)ˢ that fits them, dotted. The "
    "steeper, the fewer features do most of the work; a fall at the right end is rare or dying ones."
)
CURVES = {
    "fvu": ("FVU in training", "Of the batches that were logged, in the form that trains."),
    "l0": ("Features per token in training", "Rules that a price or a schedule holds to k end near it."),
    "dead": (
        "Dead features in training",
        "The share that had not fired for a while; not known before that while is over.",
    ),
    "never_fired": ("Features that never fired", "The share that had not fired once since training began."),
}
"""What is drawn of a training, its title and how it is read."""
SHARES = ("dead", "never_fired")
"""Those of them that are shares of the features."""


def fronts(comparison: Comparison, looks: Mapping[str, Look]) -> list[Chart]:
    """Each of ``FRONTS`` that was measured, a line for each method, with intervals.

    Args:
        looks: by method.
    """
    found = []
    for measure, reading in FRONTS.items():
        lines = _over_l0(comparison, looks, measure)
        values = _all(lines, "y")
        if not values:
            continue
        axis = log_axis(TITLES[measure], values) if min(values) > 0 and measure != "ce_score" else {}
        layout = {"xaxis": _l0_axis(lines), "yaxis": {"title": {"text": TITLES[measure]}} | axis}
        title, (heads, rows) = f"{TITLES[measure]} against L0", _table(comparison, measure)
        found.append(
            Chart(
                f"front-{measure}",
                title,
                reading,
                list(looks.values()),
                lines,
                layout,
                heads,
                rows,
                caveats=_said(comparison),
            )
        )
    return found


def efficiency(comparison: Comparison, looks: Mapping[str, Look]) -> Chart | None:
    """Allocation efficiency against L0, a line for each method; None if it was not measured."""
    lines = _over_l0(comparison, looks, "allocation_efficiency")
    values = _all(lines, "y")
    if not values:
        return None
    low, high = min(0.0, *values), max(1.0, *values)
    room = 0.08 * (high - low)
    layout = {
        "xaxis": _l0_axis(lines),
        "yaxis": {"tickformat": ".0%", "range": [low - room, high + room], "zeroline": False},
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"width": 1}}
            for y in (0, 1)
        ],
        "annotations": [_words("one k for every token", 0, "y"), _words("the best k for each", 1, "y")],
    }
    title, (heads, rows) = "Allocation efficiency against L0", _table(comparison, "allocation_efficiency")
    said = _said(comparison)
    return Chart("efficiency", title, EFFICIENCY, list(looks.values()), lines, layout, heads, rows, caveats=said)


def budgets(surveys: Mapping[Look, Survey]) -> Chart:
    """How many tokens get how many features: a row of bars for each SAE, all over one axis."""
    histograms = {look: survey.k_histogram.tolist() for look, survey in surveys.items()}
    most = max(_quantile(counts, 0.999) for counts in histograms.values())
    width = max(1, math.ceil((most + 1) / BINS))
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "features per token"}, "range": [-1, most + width]},
        "annotations": [],
    }
    bars, rows = [], []
    for place, (look, counts) in enumerate(histograms.items()):
        axis = str(place + 1) if place else ""
        bars.append(_bars(look, counts, width) | {"yaxis": f"y{axis}"})
        tokens, height = sum(counts), 1 / len(histograms)
        bottom = 1 - (place + 1) * height
        layout[f"yaxis{axis}"] = {
            "domain": [bottom, bottom + 0.7 * height],
            "showticklabels": False,
            "showgrid": False,
            "rangemode": "tozero",
        }
        mean = sum(k * n for k, n in enumerate(counts)) / tokens
        label = f"{bars[-1]['name']}, mean {mean:.1f}"
        layout["annotations"].append(_words(label, bottom + 0.74 * height, "paper", "left"))
        quantiles = [str(_quantile(counts, share)) for share in (0.05, 0.5, 0.95)]
        rows.append([look.label, f"{mean:.2f}", *quantiles, str(len(counts) - 1)])
    heads = ["SAE", "mean", "5 %", "median", "95 %", "most"]
    layout["xaxis"]["anchor"] = bars[-1]["yaxis"]
    size = 96 * len(histograms) + 56
    said, looks = _said_of(surveys), list(surveys)
    return Chart("budgets", "Features per token", BUDGETS, looks, bars, layout, heads, rows, size, said)


def densities(surveys: Mapping[Look, Survey]) -> Chart:
    """Density of the features by rank, and the Zipf–Mandelbrot curve that fits it."""
    lines: list[dict[str, Any]] = []
    rows = []
    for look, survey in surveys.items():
        falling = survey.density[survey.density > 0].sort(descending=True).values
        n = len(falling)
        ranks = torch.logspace(0, math.log10(max(n, 1)), RANKS).round().long().clamp(1, max(n, 1)).unique()
        own = falling[ranks - 1].tolist() if n else []
        told = [f"rank {rank:,}<br>density {own[at]:.3%}" for at, rank in enumerate(ranks.tolist()) if n]
        lines.append(line(look, ranks.tolist()[: len(own)], own, told, MARKS))
        row = [look.label, "", "", "", f"{len(survey.density) - n:,} of {len(survey.density):,}"]
        try:
            fit = fit_zipf(survey.density)
        except InvalidInput:  # too few features fire
            pass
        else:
            curve = line(look, ranks.tolist(), fit.at(ranks).tolist(), [])
            lines.append(
                curve | {"mode": "lines", "line": {"dash": "2px,5px", "width": 1.5}, "hoverinfo": "skip"}
            )
            row[1:4] = [f"{fit.C:.3g}", f"{fit.beta:.2f}", f"{fit.s:.3f}"]
        rows.append(row)
    layout = {
        "xaxis": log_axis("rank of the feature", _all(lines, "x")),
        "yaxis": log_axis("density", _all(lines, "y")),
    }
    heads = ["SAE", "C", "β", "s", "never fire"]
    said, looks = _said_of(surveys), list(surveys)
    return Chart("densities", "Density by rank", DENSITIES, looks, lines, layout, heads, rows, 440, said)


def curves(logs: Mapping[Look, Mapping[str, Sequence[float | None]]]) -> list[Chart]:
    """Each of ``CURVES`` that a log knows anything of, over the tokens of each training."""
    known = [measure for measure in CURVES if any(v is not None for log in logs.values() for v in log[measure])]
    return [_curve(logs, measure, *CURVES[measure]) for measure in known]


def _curve(
    logs: Mapping[Look, Mapping[str, Sequence[float | None]]], measure: str, title: str, reading: str
) -> Chart:
    lines, rows = [], []
    for look, log in logs.items():
        pairs = [(t, v) for t, v in zip(log["tokens"], log[measure], strict=True) if t and v is not None]
        if not pairs:
            rows.append([look.label, *[UNKNOWN] * 3])
        else:
            tokens, values = [t for t, _ in pairs], [v for _, v in pairs]
            told = [f"{t:,.0f} tokens<br>{v:.4g}" for t, v in pairs]
            lines.append(line(look, tokens, values, told, MARKS))
            places = (0, len(values) // 2, -1)
            rows.append([look.label, *(f"{values[place]:.4g}" for place in places)])
    values = _all(lines, "y")
    logarithmic = measure not in SHARES and min(values, default=0) > 0
    share = {"tickformat": ".0%", "range": [-0.005, max(0.05, 1.1 * max(values, default=0.0))]}
    axis = log_axis("", values) if logarithmic else share
    layout = {"xaxis": {"title": {"text": "training tokens"}, "nticks": 5}, "yaxis": axis}
    heads = ["SAE", "first", "halfway", "last"]
    name, said = f"training-{measure}", _said_of(logs)
    return Chart(name, title, reading, list(logs), lines, layout, heads, rows, 320, said)


def _over_l0(comparison: Comparison, looks: Mapping[str, Look], measure: str) -> list[dict[str, Any]]:
    """A line for each method that has the measure."""
    lines = []
    for method, look in looks.items():
        points = [p for p in comparison.points if p.method == method and {"l0", measure} <= p.measures.keys()]
        if not points:
            continue
        points.sort(key=lambda point: point.measures["l0"].mean)
        values = [point.measures[measure] for point in points]
        x, y = [point.measures["l0"].mean for point in points], [value.mean for value in values]
        drawn = line(look, x, y, [_told(point, measure) for point in points])
        hollow(drawn, look, [caveats_of(comparison, point) for point in points])
        if any(value.half for value in values):
            halves = [None if value.half is None else short(value.half) for value in values]
            drawn["error_y"] = {"type": "data", "array": halves, "thickness": 1.25, "width": 4}
        lines.append(drawn)
    return lines


def _told(point: Point, measure: str) -> str:
    cells = {name: cell_of(point.measures[name], name) for name in ("l0", measure)}
    return f"k {point.k:g}<br>L0 {cells['l0']}<br>{TITLES[measure]} {cells[measure]}"


def _table(comparison: Comparison, measure: str) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            marked(point.method, caveats_of(comparison, point)),
            f"{point.k:g}",
            *(cell_of(point.measures.get(name), name) for name in ("l0", measure)),
        ]
        for point in comparison.points
    ]
    return ["method", "k", "L0", TITLES[measure]], rows


def _said(comparison: Comparison) -> list[str]:
    """All caveats on the SAEs of a comparison."""
    return [sentence for sae in comparison.saes for sentence in sae.caveats]


def _said_of(looks: Iterable[Look]) -> list[str]:
    """All caveats on the SAEs that looks stand for."""
    return [sentence for look in looks for sentence in look.caveats]


def _bars(look: Look, counts: Sequence[int], width: int) -> dict[str, Any]:
    """The share of tokens in every ``width`` numbers of features, where there are any."""
    tokens = sum(counts)
    shares = {first: sum(counts[first : first + width]) / tokens for first in range(0, len(counts), width)}
    shares = {first: share for first, share in shares.items() if share > 0}
    names = [str(first) if width == 1 else f"{first} to {first + width - 1}" for first in shares]
    told = [f"k {name}<br>{share:.2%} of tokens" for name, share in zip(names, shares.values(), strict=True)]
    middles = [first + (width - 1) / 2 for first in shares]
    bars = trace(look, "bar", middles, list(shares.values()), told)
    return bars | {"width": 0.82 * width, "textposition": "none"}


def _l0_axis(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return log_axis("L0, features per token", _all(lines, "x"))


def _all(lines: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    return [value for one in lines for value in one[axis]]


def _words(text: str, y: float, over: str, side: str = "right") -> dict[str, Any]:
    """Words right above a height of the chart, at one of its sides."""
    place = {"xref": "paper", "x": 1 if side == "right" else 0, "xanchor": side}
    return place | {"yref": over, "y": y, "yanchor": "bottom", "text": text, "showarrow": False}


def _quantile(counts: Sequence[int], share: float) -> int:
    """The smallest k that at least this share of the tokens does not exceed."""
    wanted, so_far = share * sum(counts), 0
    for k, n in enumerate(counts):
        so_far += n
        if so_far >= wanted:
            return k
    return len(counts) - 1
