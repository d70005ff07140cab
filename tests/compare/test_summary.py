"""Laws of the tables, on measures that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.compare import Difference, Interval, Measured, Seed
from apportion.compare.summary import Sample, Summary
from apportion.metrics.intervals import over_seeds


def front(method: str, seed: int, points: dict[float, tuple[float, float]], order: int = 0) -> list[Measured]:
    """SAEs of one seed from L0 and FVU by k."""
    return [
        Measured(f"{method}-k{k}-s{seed}", method, k, Seed(seed, order), {"l0": l0, "fvu": fvu, "tokens": 9})
        for k, (l0, fvu) in points.items()
    ]


def law(scale: float, k: tuple[float, ...] = (8, 16, 32), l0: float = 1.0) -> dict[float, tuple[float, float]]:
    """FVU as a power of the measured L0, which is a share of k."""
    return {own: (l0 * own, scale * (l0 * own) ** -0.5) for own in k}


def redrawn(saes: list[Measured], noise: float = 0.01, draws: int = 100) -> list[Sample]:
    """The measures with noise that all SAEs share, and a little of their own in L0."""
    random = np.random.default_rng(0)
    samples: list[Sample] = []
    for _ in range(draws):
        common = 1 + noise * random.standard_normal()
        samples.append({
            sae.name: {
                "l0": (sae.measures["l0"] or 0) * (1 + 1e-3 * random.standard_normal()),
                "fvu": (sae.measures["fvu"] or 0) * common,
            }
            for sae in saes
        })  # fmt: skip
    return samples


def test_a_method_and_itself_differ_by_nothing_with_an_interval_of_nothing() -> None:
    saes = []
    for method in ("a", "b"):
        for seed in range(3):
            saes += front(method, seed, law(1 + 0.1 * seed))
    found = list(Summary(saes).differences())
    assert [one.k for one in found] == [8, 16, 32]
    assert all(one.value == Interval(0.0, 0.0, 3) and one.excludes_zero is False for one in found)


def test_so_it_is_on_redrawn_documents_of_one_seed() -> None:
    a, b = front("a", 0, law(1)), front("b", 0, law(1))
    samples = []
    for sample in redrawn(a):
        samples.append({**sample, **{own.name: sample[other.name] for own, other in zip(b, a, strict=True)}})
    found = list(Summary([*a, *b], samples, 50).differences())
    assert len(found) == 3
    assert all(one.value == Interval(0.0, 0.0, 50, "documents") for one in found)


def test_methods_are_read_at_one_l0_between_their_points() -> None:
    saes = [*front("a", 0, law(1)), *front("b", 0, law(0.9, l0=0.97))]
    found = {one.k: one for one in Summary(saes).differences()}
    assert {k: round(one.l0, 2) for k, one in found.items()} == {8: 8, 16: 16, 32: 31.04}
    for one in found.values():
        assert (one.method, one.reference, one.measure) == ("b", "a", "fvu")
        assert one.value.mean == pytest.approx(-0.1 * one.l0**-0.5, rel=1e-9)
        assert one.share == pytest.approx(-0.1, rel=1e-9)
        assert one.value.half is None and one.excludes_zero is None
    levels = {(level.method, level.k): level for level in Summary(saes).levels()}
    assert levels["a", 32].l0 == levels["b", 32].l0 == found[32].l0
    assert levels["b", 8].value.mean == pytest.approx(0.9 * 8**-0.5)


def test_pairs_are_paired_by_seed() -> None:
    """Seeds differ by ten times what the methods do."""
    scales = {0: 1.0, 1: 1.3, 2: 1.6}
    saes = [sae for s, scale in scales.items() for sae in front("a", s, law(scale))]
    saes += [sae for s, scale in scales.items() for sae in front("b", s, law(scale - 0.05 - 0.001 * s))]
    found = next(one for one in Summary(saes).differences() if one.k == 16)
    expected = over_seeds([-(0.05 + 0.001 * s) / 4 for s in scales])
    assert found.value.mean == pytest.approx(expected.mean) and found.value.n == 3
    assert found.value.half == pytest.approx(expected.half) and found.excludes_zero is True


def test_only_shared_seeds_are_paired_and_the_order_of_rows_counts() -> None:
    saes = [*front("a", 0, law(1)), *front("a", 1, law(1)), *front("b", 1, law(2)), *front("b", 2, law(3))]
    (found,) = [one for one in Summary(saes).differences() if one.k == 16]
    assert found.value.n == 1 and found.value.mean == pytest.approx(0.25)
    other = [*front("a", 0, law(1)), *front("b", 0, law(1), order=1)]
    assert list(Summary(other).differences()) == [] and Summary(other).seeds("a", "b") == []


def test_nothing_is_read_outside_of_a_front() -> None:
    saes = [*front("a", 0, law(1)), *front("b", 0, law(1, k=(8, 16)))]
    summary = Summary(saes)
    assert {one.k for one in summary.differences()} == {8, 16}
    assert [(level.method, level.k) for level in summary.levels()] == [
        *(("a", 8), ("b", 8), ("a", 16), ("b", 16), ("a", 32))
    ]


def test_a_single_point_is_compared_at_its_own_l0_only() -> None:
    saes = [*front("a", 0, law(1)), *front("b", 0, law(0.9, k=(16,), l0=1.01))]
    (found,) = Summary(saes).differences()
    assert found.l0 == pytest.approx(16.16) and found.share == pytest.approx(-0.1)
    apart = [*front("a", 0, law(1, k=(16,))), *front("b", 0, law(0.9, k=(16,), l0=1.01))]
    assert list(Summary(apart).differences()) == []
    equal = [*front("a", 0, law(1, k=(16,))), *front("b", 0, law(0.9, k=(16,)))]
    assert len(list(Summary(equal).differences())) == 1


def test_one_seed_has_an_interval_over_documents_for_what_can_be_redrawn() -> None:
    saes = [*front("a", 0, law(1)), *front("b", 0, law(0.9, l0=0.97))]
    samples = redrawn(saes)
    summary = Summary(saes, samples, 40)
    point = next(iter(summary.points()))
    assert point.measures["fvu"].over == "documents" and point.measures["fvu"].n == 40
    assert point.measures["fvu"].half == pytest.approx(2.02 * 0.01 * 8**-0.5, rel=0.3)
    assert point.measures["tokens"] == Interval(9, None, 1)
    found = list(summary.differences())
    assert [one.value.over for one in found] == ["documents"] * 3
    # Noise that both share leaves a share of their difference only.
    assert all(one.value.half is not None and one.value.half < 0.1 * 0.05 and one.excludes_zero for one in found)


def test_what_a_redrawn_set_leaves_undefined_has_no_interval() -> None:
    saes = [*front("a", 0, law(1, k=(8, 16))), *front("b", 0, law(1, k=(16,), l0=0.9999))]
    found = list(Summary(saes, redrawn(saes), 40).differences())
    assert [one.value.half for one in found] == [None], (
        "half of the redrawn points lie outside of the other front"
    )


def test_measures_are_averaged_over_seeds() -> None:
    saes = [sae for s in range(3) for sae in front("a", s, law(1 + s, k=(16,)))]
    (point,) = Summary(saes).points()
    assert point.measures["fvu"] == over_seeds([0.25, 0.5, 0.75]) and point.measures["l0"].half == 0
    assert not any(isinstance(one, Difference) for one in Summary(saes).differences())


def test_a_measure_that_is_undefined_for_an_sae_is_left_out() -> None:
    saes = front("a", 0, law(1))
    saes[0].measures["fvu"] = None
    summary = Summary(saes)
    assert [level.k for level in summary.levels()] == [16, 32]
    assert "fvu" not in next(iter(summary.points())).measures


def test_another_sae_that_shares_no_l0_with_the_others_changes_nothing_of_theirs() -> None:
    """They would be read at k instead, each on the seeds that reach it."""
    saes = []
    for seed, l0 in ((0, 1.004), (1, 1.006), (2, 0.999)):
        saes += [*front("a", seed, law(1)), *front("b", seed, law(0.9, l0=l0))]
    alone = list(Summary(saes).levels())
    assert {(level.method, level.k, level.value.n) for level in alone} == {
        (method, k, 3) for method in "ab" for k in (8, 16, 32)
    }
    strange = [*front("c", 0, law(1, k=(8,), l0=1.09)), *front("d", 0, law(1, k=(8,), l0=0.98))]
    assert list(Summary([*saes, *strange]).levels()) == alone


def test_a_method_that_reaches_k_with_some_seeds_only_is_not_read_there() -> None:
    saes = [
        *front("a", 0, law(1)),
        *front("a", 1, law(1)),
        *front("b", 0, law(1)),
        *front("b", 1, law(1, k=(8, 16))),
    ]
    cells = {(level.method, level.k) for level in Summary(saes).levels()}
    assert cells == {("a", 8), ("a", 16), ("a", 32), ("b", 8), ("b", 16)}


def test_a_mean_over_seeds_is_of_all_of_them_or_none() -> None:
    saes = [sae for s in range(3) for sae in front("a", s, law(1, k=(16,)))]
    saes[1].measures["fvu"] = None
    (point,) = Summary(saes).points()
    assert "fvu" not in point.measures and point.measures["l0"].n == 3


def test_methods_that_share_an_l0_are_read_there_whoever_else_is_near() -> None:
    """One that ends below the others' beginning keeps none of them out."""
    saes = [*front("a", 0, law(1, k=(8, 16, 32, 64))), *front("b", 0, law(1, k=(8, 16), l0=0.95))]
    saes += [*front("c", 0, law(1, k=(16, 32), l0=1.02)), *front("d", 0, law(1, k=(16, 32), l0=1.06))]
    summary = Summary(saes)
    read = [(level.method, round(level.l0, 2)) for level in summary.levels() if level.k == 16]
    assert read == [("a", 16.96), ("c", 16.96), ("d", 16.96)]
    assert list(summary.apart()) == [("b", 16)]


def test_a_difference_is_of_all_shared_seeds_or_none() -> None:
    saes = [sae for seed in range(2) for sae in front("a", seed, law(1))]
    saes += [*front("b", 0, law(1)), *front("b", 1, law(1, k=(8, 16)))]
    assert {(one.k, one.value.n) for one in Summary(saes).differences()} == {(8, 2), (16, 2)}


def test_a_reading_names_the_saes_that_it_is_read_from() -> None:
    saes = [*front("a", 0, law(1)), *front("b", 0, law(1, l0=0.95))]
    levels = {(one.method, one.k): one.read_from for one in Summary(saes).levels()}
    assert levels["a", 16] == ("a-k16-s0",) and levels["b", 16] == ("b-k16-s0", "b-k32-s0")
    (middle,) = (one for one in Summary(saes).differences() if one.k == 16)
    assert middle.read_from == ("a-k16-s0", "b-k16-s0", "b-k32-s0")
