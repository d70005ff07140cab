"""Between two points of a front: exact at the points, monotone between them, nothing outside."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.compare.fronts import at_l0, common_l0, reaches

FRONT = [(7.9, 0.41), (16.2, 0.25), (31.0, 0.2), (66.0, 0.11)]

points = st.lists(
    st.tuples(st.floats(0.5, 500), st.floats(1e-4, 2)), min_size=1, max_size=6, unique_by=lambda point: point[0]
).map(sorted)


@given(front=points, logarithmic=st.booleans())
def test_it_is_exact_at_the_points(front: list[tuple[float, float]], logarithmic: bool) -> None:
    for l0, value in front:
        assert at_l0(front, l0, logarithmic) == value


@given(front=points, l0=st.floats(0.01, 1000))
def test_it_is_empty_outside_and_nowhere_else(front: list[tuple[float, float]], l0: float) -> None:
    inside = front[0][0] <= l0 <= front[-1][0]
    assert (at_l0(front, l0) is not None) == inside


@given(share=st.floats(0.01, 0.98), step=st.floats(0.001, 0.01), logarithmic=st.booleans())
def test_it_falls_where_the_front_falls(share: float, step: float, logarithmic: bool) -> None:
    low, high = math.log(FRONT[0][0]), math.log(FRONT[-1][0])
    one, two = (at_l0(FRONT, math.exp(low + s * (high - low)), logarithmic) for s in (share, share + step))
    assert one is not None and two is not None and FRONT[-1][1] <= two < one <= FRONT[0][1]


def test_a_power_of_l0_is_met_between_the_points() -> None:
    power = [(l0, 3 * l0**-0.7) for l0 in (8.0, 64.0)]
    assert at_l0(power, 20.0) == pytest.approx(3 * 20**-0.7, rel=1e-12)
    line = [(l0, 0.1 * math.log(l0)) for l0 in (8.0, 64.0)]
    assert at_l0(line, 20.0, logarithmic=False) == pytest.approx(0.1 * math.log(20), rel=1e-12)


def test_what_has_no_logarithm_is_a_straight_line() -> None:
    assert at_l0([(4.0, 0.2), (16.0, 0.0)], 8.0) == pytest.approx(0.1)
    assert at_l0([(0.0, 1.0), (16.0, 0.5)], 8.0) is None, "log L0 is not defined at 0"


def test_the_common_l0_is_the_nearest_to_k() -> None:
    above, below = [(8.0, 0.4), (32.0, 0.1)], [(7.9, 0.4), (31.4, 0.1)]
    assert common_l0(16, [above, below]) == 16
    assert common_l0(32, [above, below]) == 31.4
    assert common_l0(8, [above, below]) == 8
    assert common_l0(32, [[(32.0, 0.1)], below]) is None, "no L0 lies in both"
    assert common_l0(32, [above, [(31.4, 0.1)]]) == 31.4
    assert common_l0(16, [above, []]) is None and common_l0(16, []) is None


def test_a_front_that_ends_within_a_tenth_of_k_reaches_it() -> None:
    front = [(8.0, 0.4), (30.0, 0.1)]
    assert all(reaches(front, k) for k in (7.5, 8, 20, 33))
    assert not any(reaches(front, k) for k in (7, 34)) and not reaches([], 8)
