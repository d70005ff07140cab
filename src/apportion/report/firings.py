"""Where a feature is strongest: the code by feature, and the contexts around its largest values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..code import Code

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

REACH = 12
"""Tokens shown to either side of a feature's strongest one."""


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of tokens and a feature's values in it.

    Attributes:
        first, last: rows of the tokens, ``last`` excluded.
        peak: row of the strongest token.
        rows, values: [m] where in the stretch the feature fires, ascending, and how strongly.
    """

    first: int
    last: int
    peak: int
    rows: Ints
    values: Floats


class Firings:
    """The code of some tokens, feature by feature.

    Args:
        code: of n tokens, on the CPU.
        begins: [c] first row of each context, ascending from 0.
    """

    def __init__(self, code: Code, begins: Ints) -> None:
        order = np.argsort(code.indices.numpy(), kind="stable")
        self._rows: Ints = code.rows.numpy()[order]
        self._values: Floats = code.values.detach().numpy()[order]
        self._starts = np.searchsorted(code.indices.numpy()[order], np.arange(code.d_sae + 1))
        self._begins, self._ends = begins, np.append(begins[1:], code.n)

    def of(self, feature: int) -> tuple[Ints, Floats]:
        """The rows that a feature fires on, ascending, and its values there."""
        own = slice(self._starts[feature], self._starts[feature + 1])
        return self._rows[own], self._values[own]

    def strongest(self, feature: int, n: int, reach: int = REACH) -> list[Window]:
        """The ``n`` contexts with the largest values of a feature, each once, by falling value.

        Of equal values the earlier comes first. A stretch ends where its context does.
        """
        rows, values = self.of(feature)
        falling = np.argsort(-values, kind="stable")
        context = np.searchsorted(self._begins, rows[falling], side="right") - 1
        _, firsts = np.unique(context, return_index=True)
        chosen = np.sort(firsts)[:n]
        return [
            self._window(rows, values, int(rows[falling[at]]), int(context[at]), reach) for at in chosen.tolist()
        ]

    def _window(self, rows: Ints, values: Floats, peak: int, context: int, reach: int) -> Window:
        first = max(peak - reach, int(self._begins[context]))
        last = min(peak + reach + 1, int(self._ends[context]))
        inside = slice(*np.searchsorted(rows, [first, last]))
        return Window(first, last, peak, rows[inside], values[inside])
