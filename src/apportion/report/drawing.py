"""What charts have in common: looks, axes with round ticks, and traces for plotly as plain JSON.

Colours are the page's: a trace names its series in ``meta`` and the page colours it, in light and in dark.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..training.caveats import MARK

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "hexagon", "triangle-down")
"""Of a method, with its colour: no line is told by colour alone."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
"""Of the k of a method, where it is drawn at several."""


@dataclass(frozen=True)
class Look:
    """How an SAE or a method is drawn, and what it is called.

    Attributes:
        series: number of the method, which gives colour and symbol.
        dash: number of the k among those of its method.
        caveats: what is wrong with the SAE that it stands for.
    """

    label: str
    series: int
    dash: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.series % len(SYMBOLS)]

    @property
    def line(self) -> str:
        return DASHES[self.dash % len(DASHES)]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: unique in the page.
        title, reading: what it shows, and how it is read, in a sentence or two.
        looks: what is in it, for its key.
        data, layout: plotly's.
        heads, rows: the same in numbers.
        height: pixels.
        caveats: what is wrong with SAEs in it, a sentence each.
    """

    name: str
    title: str
    reading: str
    looks: Sequence[Look]
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    height: int = 400
    caveats: Sequence[str] = ()

    @property
    def figure(self) -> dict[str, Any]:
        """What the page draws."""
        return {"data": self.data, "layout": self.layout}


def trace(look: Look, kind: str, x: Sequence[float], y: Sequence[float], told: Sequence[str]) -> dict[str, Any]:
    """A trace of plotly's ``kind`` that says ``told`` of each of its marks, under the label of its look."""
    return {
        "type": kind,
        "name": plain(look.label),
        "x": [short(value, 6) for value in x],
        "y": [short(value, 6) for value in y],
        "text": [f"<b>{plain(look.label)}</b><br>{words}" for words in told],
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"series": look.series, "label": look.label},
    }


def line(
    look: Look, x: Sequence[float], y: Sequence[float], told: Sequence[str], most_marks: int = 0
) -> dict[str, Any]:
    """A line with its look's symbol at its points, or at so many of them as do not hide it; 0 for all."""
    return trace(look, "scatter", x, y, told) | {
        "mode": "lines+markers",
        "line": {"dash": look.line, "width": 2},
        "marker": {"symbol": look.symbol, "size": 9, "maxdisplayed": most_marks},
    }


def hollow(drawn: dict[str, Any], look: Look, said: Sequence[Sequence[str]]) -> None:
    """Empty the symbols of a line at those of its points that there are caveats on, and tell these there.

    Args:
        said: the caveats on each of the points.
    """
    if any(said):
        drawn["marker"]["symbol"] = [f"{look.symbol}-open" if own else look.symbol for own in said]
        drawn["text"] = [
            "<br>".join([words, *(plain(part) for one in own for part in textwrap.wrap(f"{MARK} {one}", 60))])
            for words, own in zip(drawn["text"], said, strict=True)
        ]


def log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis around those ``values`` that it can show, with ticks at round numbers however short."""
    shown = [value for value in values if value > 0]
    low, high = min(shown, default=1.0), max(shown, default=10.0)
    pad = max(0.06 * math.log10(high / low), 0.02)
    ends = [math.log10(low) - pad, math.log10(high) + pad]
    places = ticks(10 ** ends[0], 10 ** ends[1])
    return {
        "title": {"text": title},
        "type": "log",
        "range": ends,
        "tickvals": places,
        "ticktext": [f"{place:,.0f}" if place >= 1000 else f"{place:.4g}" for place in places],
    }


def ticks(low: float, high: float) -> list[float]:
    """Some round numbers within, three at least and of the coarsest kind that has as many.

    >>> ticks(7.0, 36.0)
    [8.0, 10.0, 20.0, 30.0]
    >>> ticks(0.9, 1500.0)
    [1.0, 10.0, 100.0, 1000.0]
    >>> ticks(0.15, 0.27)
    [0.16, 0.18, 0.2, 0.22, 0.24, 0.26]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
        found = [float(f"{lead}e{decade}") for decade in decades for lead in leads]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    room = (high - low) / 4
    decade = 10.0 ** math.floor(math.log10(room))
    step = max(factor for factor in (1, 2, 5) if factor * decade <= room) * decade
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def plain(text: str) -> str:
    """Text as plotly is to show it, which reads a small markup of its own."""
    return html.escape(text, quote=False)


def short(value: float, digits: int = 4) -> float:
    """A number in as many digits as are worth their place in the page."""
    return float(f"{value:.{digits}g}")
