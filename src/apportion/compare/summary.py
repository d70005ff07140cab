"""From single SAEs to methods: over seeds, at equal measured L0, and in pairs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from ..metrics.intervals import Interval, over_documents, over_seeds
from .base import Difference, Level, Measured, Point
from .fronts import Front, at_l0, common_l0, reaches, read_between
from .origin import Seed

LOGARITHMIC = ("fvu", "kl", "hidden_error")
"""Measures that fall towards zero: read between two points of a front in their logarithm."""
STRAIGHT = ("cosine", "ce_score")
"""Measures that rise towards one: read on a straight line over log L0."""

Sample: TypeAlias = Mapping[str, Mapping[str, float | None]]
"""Measures by the name of the SAE, on all documents or on redrawn ones."""
Reading: TypeAlias = Callable[[Sample], float | None]
"""A number that a sample gives; None where it gives none."""


class Summary:
    """The tables of a comparison.

    With two or more seeds, intervals are Student's t over seeds. With one, every reading is repeated on redrawn
    documents, the L0 at which fronts are read included.

    Args:
        saes: of which no two have method, k and seed in common.
        redrawn: L0 and FVU of every SAE on redrawn documents; empty where there are too few.
        documents: how many were drawn.
    """

    def __init__(self, saes: Sequence[Measured], redrawn: Sequence[Sample] = (), documents: int = 0) -> None:
        self.methods = list(dict.fromkeys(sae.method for sae in saes))
        self.k = sorted({sae.k for sae in saes})
        self._saes, self._redrawn, self._documents = saes, redrawn, documents
        self._all: Sample = {sae.name: sae.measures for sae in saes}
        self._fronts: dict[tuple[str, Seed], list[str]] = {}
        for sae in saes:
            self._fronts.setdefault((sae.method, sae.seed), []).append(sae.name)
        self._read = [name for name in (*LOGARITHMIC, *STRAIGHT) if any(name in sae.measures for sae in saes)]

    def seeds(self, *methods: str) -> list[Seed]:
        """The seeds that all these methods have, in the order of the first's SAEs."""
        own = [seed for method, seed in self._fronts if method == methods[0]]
        return [seed for seed in own if all((method, seed) in self._fronts for method in methods)]

    def points(self) -> Iterator[Point]:
        """Every method at every k that it has."""
        for method, k in itertools.product(self.methods, self.k):
            group = [sae for sae in self._saes if (sae.method, sae.k) == (method, k)]
            measures = {}
            for measure in dict.fromkeys(name for sae in group for name in sae.measures):
                if any(sae.measures.get(measure) is None for sae in group):
                    continue  # the mean of those that have it would be of other seeds than its neighbours
                readings: list[Reading] = [_measure_of(sae.name, measure) for sae in group]
                if (value := self._interval(readings)) is not None:
                    measures[measure] = value
            if group:
                yield Point(method, k, measures)

    def levels(self) -> Iterator[Level]:
        """The methods that share an L0 near a k with every seed, at the nearest one that all of them reach."""
        for measure, k in itertools.product(self._read, self.k):
            together = self._together(k)
            for method in together:
                seeds = self.seeds(method)
                readings = [self._level(method, seed, measure, k, together) for seed in seeds]
                places = [self._place(self._all, seed, k, together) for seed in seeds]
                if any(reading(self._all) is None for reading in readings):
                    continue
                if (value := self._interval(readings)) is not None:
                    known = [place for place in places if place is not None]
                    names = self._read_from([method], seeds, measure, known)
                    yield Level(method, k, statistics.fmean(known), measure, value, names)

    def differences(self) -> Iterator[Difference]:
        """Every method less each of those before it, at the L0 nearest to each k that both reach."""
        pairs = list(itertools.combinations(self.methods, 2))
        for measure, (reference, method), k in itertools.product(self._read, pairs, self.k):
            seeds = self.seeds(reference, method)
            readings = [self._difference(reference, method, seed, measure, k) for seed in seeds]
            if any(reading(self._all) is None for reading in readings):
                continue
            bases, places = [], []
            for seed in seeds:
                place = self._shared(self._all, (reference, method), seed, k)
                base = self._at(self._all, reference, seed, measure, place)
                assert place is not None and base is not None
                places.append(place)
                bases.append(base)
            if (value := self._interval(readings)) is not None:
                base = statistics.fmean(bases)
                share = value.mean / base if base else None
                l0 = statistics.fmean(places)
                names = self._read_from([reference, method], seeds, measure, places)
                yield Difference(method, reference, k, l0, measure, value, share, value.excludes_zero, names)

    def _interval(self, readings: Sequence[Reading]) -> Interval | None:
        """Over the readings, one per seed; of a single one, over documents if it can be redrawn."""
        values = [value for reading in readings if (value := reading(self._all)) is not None]
        if len(values) != 1:
            return over_seeds(values) if values else None
        redrawn = []
        for sample in self._redrawn:
            value = readings[0](sample) if len(readings) == 1 else None
            if value is None:
                return over_seeds(values)
            redrawn.append(value)
        return over_documents(values[0], redrawn, self._documents) if redrawn else over_seeds(values)

    def _level(self, method: str, seed: Seed, measure: str, k: float, together: Sequence[str]) -> Reading:
        return lambda sample: self._at(sample, method, seed, measure, self._place(sample, seed, k, together))

    def _difference(self, reference: str, method: str, seed: Seed, measure: str, k: float) -> Reading:
        def read(sample: Sample) -> float | None:
            place = self._shared(sample, (reference, method), seed, k)
            first, second = (self._at(sample, name, seed, measure, place) for name in (reference, method))
            return None if first is None or second is None else second - first

        return read

    def _together(self, k: float) -> list[str]:
        """The methods to be read near k, in their order: the nearest to it, and all that can be read with those.

        That is, with every seed at an L0 that all of them reach; and a method that lacks some of their seeds only
        where they are read without it, or they would be read at another L0 with some seeds than with others.
        """
        found: list[str] = []
        for method in sorted(self._all_near(k), key=lambda method: self._distance(method, k)):
            own = self.seeds(method)
            others = {seed for other in found for seed in self.seeds(other)}
            places = {seed: self._place(self._all, seed, k, [*found, method]) for seed in own}
            stays = all(places[s] == self._place(self._all, s, k, found) for s in others.intersection(own))
            if None not in places.values() and (stays or others.issubset(own)):
                found.append(method)
        return [method for method in self.methods if method in found]

    def apart(self) -> Iterator[tuple[str, float]]:
        """Methods that come near a k with every seed and are not read there."""
        for k in self.k:
            together = self._together(k)
            yield from ((method, k) for method in self._all_near(k) if method not in together)

    def _all_near(self, k: float) -> list[str]:
        return [m for m in self.methods if all(self._near(m, seed, k) for seed in self.seeds(m))]

    def _distance(self, method: str, k: float) -> float:
        nearest = (common_l0(k, [self._front(self._all, method, seed)]) for seed in self.seeds(method))
        return max(abs(l0 - k) for l0 in nearest if l0 is not None)

    def _place(self, sample: Sample, seed: Seed, k: float, together: Sequence[str]) -> float | None:
        """The L0 nearest to k that those of the methods that have the seed reach with it."""
        return common_l0(k, [self._front(sample, m, seed) for m in together if (m, seed) in self._fronts])

    def _shared(self, sample: Sample, methods: Sequence[str], seed: Seed, k: float) -> float | None:
        if not all(self._near(method, seed, k) for method in methods):
            return None
        return common_l0(k, [self._front(sample, method, seed) for method in methods])

    def _near(self, method: str, seed: Seed, k: float) -> bool:
        """Whether a front comes near k as it was measured; redrawn it may end farther from it."""
        return reaches(self._front(self._all, method, seed), k)

    def _at(self, sample: Sample, method: str, seed: Seed, measure: str, l0: float | None) -> float | None:
        if l0 is None:
            return None
        return at_l0(self._front(sample, method, seed, measure), l0, measure in LOGARITHMIC)

    def _read_from(
        self, methods: Sequence[str], seeds: Sequence[Seed], measure: str, places: Sequence[float]
    ) -> tuple[str, ...]:
        """The SAEs that are read for these methods, at one L0 for each seed."""
        found = []
        for method, (seed, l0) in itertools.product(methods, zip(seeds, places, strict=True)):
            points = {point: name for name, point in self._points(self._all, method, seed, measure).items()}
            front = sorted(points)
            found += [points[front[place]] for place in read_between(front, l0)]
        return tuple(found)

    def _front(self, sample: Sample, method: str, seed: Seed, measure: str = "l0") -> Front:
        return sorted(self._points(sample, method, seed, measure).values())

    def _points(self, sample: Sample, method: str, seed: Seed, measure: str) -> dict[str, tuple[float, float]]:
        """L0 and a measure of each SAE of a method and seed that has both."""
        return {
            name: (l0, value)
            for name in self._fronts[method, seed]
            if (l0 := sample[name].get("l0")) is not None and (value := sample[name].get(measure)) is not None
        }


def _measure_of(name: str, measure: str) -> Reading:
    return lambda sample: sample[name].get(measure)
