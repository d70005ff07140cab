"""Intervals against scipy, and how often they cover the truth in simulations."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.metrics.intervals import Interval, over_documents, over_seeds, redrawn_sums, student_95


@pytest.mark.parametrize("degrees", [*range(1, 31), 99, 100, 999, 1000])
def test_points_of_student_t_are_those_of_scipy(degrees: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_many_degrees_are_hardly_too_wide() -> None:
    assert 1 < student_95(100_000) / 1.959964 < 1.0015


def test_over_seeds_is_the_interval_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.31, 0.28, 0.35, 0.30]
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.half is not None and (found.n, found.over) == (4, "seeds")
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), rel=1e-9)


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert over_seeds([0.5]) == Interval(0.5, None, 1)
    assert over_seeds([0.5]).excludes_zero is None


def test_equal_values_leave_nothing_to_either_side() -> None:
    assert over_seeds([0.0, 0.0, 0.0]) == Interval(0.0, 0.0, 3)
    assert over_seeds([0.0, 0.0]).excludes_zero is False
    assert over_seeds([0.25, 0.25]).excludes_zero is True


def test_columns_see_the_same_draws_and_draws_are_whole_sets() -> None:
    sums = np.stack([np.ones(30), np.arange(30), 2 * np.arange(30)], 1)
    redrawn = redrawn_sums(sums, 50)
    assert redrawn.shape == (50, 3)
    assert (redrawn[:, 0] == 30).all() and (redrawn[:, 2] == 2 * redrawn[:, 1]).all()
    assert len(np.unique(redrawn[:, 1])) > 40
    assert (redrawn == redrawn_sums(sums, 50)).all()


@pytest.mark.parametrize("documents", [20, 60])
def test_the_interval_over_documents_covers_a_ratio_19_times_in_20(documents: int) -> None:
    """Documents of unequal length, whose levels differ: error over spread, as FVU is."""
    random = np.random.default_rng(documents)
    covered, rounds = 0, 400
    for number in range(rounds):
        tokens = random.integers(20, 200, documents)
        spread = tokens * random.uniform(0.5, 1.5, documents)
        error = spread * random.normal(0.2, 0.05, documents)
        redrawn = redrawn_sums(np.stack([error, spread], 1), 200, seed=number)
        found = over_documents(error.sum() / spread.sum(), list(redrawn[:, 0] / redrawn[:, 1]), documents)
        assert found.half is not None and (found.n, found.over) == (documents, "documents")
        covered += abs(found.mean - 0.2) <= found.half
    assert 0.92 <= covered / rounds <= 0.985
