"""Axes and words of charts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from apportion.report.drawing import Look, line, ticks


@given(st.floats(1e-7, 1e6), st.floats(1.0001, 1e9))
def test_there_are_always_a_few_ticks_and_all_lie_within(low: float, ratio: float) -> None:
    found = ticks(low, low * ratio)
    assert 3 <= len(found) <= 12
    assert found == sorted(set(found))
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in found)
    assert all(math.isfinite(tick) for tick in found)


def test_names_reach_plotly_as_text() -> None:
    drawn = line(Look("<b>a</b> & b", 0), [1.0], [2.0], ["k 3"])
    assert drawn["name"] == "&lt;b&gt;a&lt;/b&gt; &amp; b"
    assert drawn["text"] == ["<b>&lt;b&gt;a&lt;/b&gt; &amp; b</b><br>k 3"]
