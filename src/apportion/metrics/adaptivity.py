"""What the number of features of a token follows: means in bins and rank correlations, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .intervals import Interval, over_documents, redrawn_documents, redrawn_sums

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

BINS = 10
"""Numbers with more values than that are put into so many bins of equal size."""
DRAWS = 1000
"""Sets of documents that an interval is drawn from."""


@dataclass(frozen=True, eq=False)
class Classes:
    """A word per token.

    Attributes:
        names: the words.
        of: [n] the number of each token's word, -1 where it has none.
    """

    names: Sequence[str]
    of: Ints


Covariate: TypeAlias = NDArray[Any] | Classes
"""[n] a number per token, NaN where it has none, or a word."""


@dataclass(frozen=True)
class Bin:
    """The tokens of a class, or those whose number lies above that of the bin before and up to ``high``.

    Attributes:
        label: the class, or the two ends.
        low, high: smallest and largest number; None for a class.
        tokens: how many.
        k: mean features per token, with its interval over the documents that have such a token.
    """

    label: str
    low: float | None
    high: float | None
    tokens: int
    k: Interval


@dataclass(frozen=True)
class Relation:
    """How k goes with one covariate.

    Attributes:
        covariate: its name.
        tokens, documents: that have it.
        bins: by rising number; classes by falling mean.
        rho: Spearman's rank correlation with its interval; None for classes, and where k or the numbers are all
            equal.
        explained: share of the variance of k that lies between the bins; None where k is constant.
    """

    covariate: str
    tokens: int
    documents: int
    bins: tuple[Bin, ...]
    rho: Interval | None
    explained: float | None


def relations(
    k: NDArray[Any], covariates: Mapping[str, Covariate], document: NDArray[Any], draws: int = DRAWS
) -> list[Relation]:
    """What ``k`` follows, a relation per covariate, each over the tokens that have it.

    Intervals are 95 % and clustered: documents are drawn with replacement with all of their tokens, and what is
    reported is measured again on each draw, ranks included. Of fewer than two documents no interval is given.

    Args:
        k: [n] features per token.
        document: [n] the document of each token.
        draws: sets of documents.

    Raises:
        InvalidInput: the lengths differ, or no token has a covariate.
    """
    return [_relation(name, k, covariate, document, draws) for name, covariate in covariates.items()]


def quantile_bins(values: Floats) -> Ints:
    """[n] the bin of each number: one per value if there are at most ``BINS``, else as many of about equal size.

    Equal numbers share a bin, so bins of many ties are larger and there may be fewer of them.
    """
    distinct, own = np.unique(values, return_inverse=True)
    if len(distinct) <= BINS:
        return own.astype(np.int64)
    edges = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")
    return np.unique(np.searchsorted(edges, values), return_inverse=True)[1].astype(np.int64)


def rank_correlation(a: NDArray[Any], b: NDArray[Any], document: NDArray[Any], draws: int) -> Interval | None:
    """Spearman's coefficient of ``a [n]`` and ``b [n]``, and its interval over documents."""
    ranked = _Ranked.of(a), _Ranked.of(b)
    value = _spearman(*ranked, np.ones(len(a)))
    if value is None:
        return None
    names, own = np.unique(document, return_inverse=True)
    if len(names) < 2:
        return Interval(value, None, len(names), "documents")
    redrawn = [_spearman(*ranked, times[own]) for times in redrawn_documents(len(names), draws)]
    found = [rho for rho in redrawn if rho is not None]
    if len(found) < draws / 2:  # one side is constant but for very few documents
        return Interval(value, None, len(names), "documents")
    return over_documents(value, found, len(names))


def _relation(name: str, k: NDArray[Any], covariate: Covariate, document: NDArray[Any], draws: int) -> Relation:
    values: NDArray[Any] = covariate.of if isinstance(covariate, Classes) else np.asarray(covariate, np.float64)
    if not len(k) == len(values) == len(document):
        raise InvalidInput(
            f"{len(k)} tokens have {len(values)} entries of {name!r} and {len(document)} document numbers; pass "
            "one of each per token"
        )
    known = values >= 0 if isinstance(covariate, Classes) else ~np.isnan(values)
    if not known.any():
        raise InvalidInput(
            f"none of the {len(k)} tokens has {name!r}; leave it out or check the names of documents"
        )
    k, values, document = k[known].astype(np.float64), values[known], document[known]
    if isinstance(covariate, Classes):
        bins = sorted(_class_bins(k, covariate.names, values, document, draws), key=lambda one: -one.k.mean)
        rho, own = None, values
    else:
        own = quantile_bins(values)
        bins = list(_number_bins(k, values, own, document, draws))
        rho = rank_correlation(k, values, document, draws)
    return Relation(name, len(k), len(np.unique(document)), tuple(bins), rho, _explained(k, own))


def _class_bins(k: Floats, names: Sequence[str], own: Ints, document: Ints, draws: int) -> Iterator[Bin]:
    for number in np.unique(own):
        here = own == number
        yield Bin(names[number], None, None, int(here.sum()), _mean(k[here], document[here], draws))


def _number_bins(k: Floats, values: Floats, own: Ints, document: Ints, draws: int) -> Iterator[Bin]:
    for number in range(int(own.max()) + 1):
        here = own == number
        low, high = float(values[here].min()), float(values[here].max())
        label = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        yield Bin(label, low, high, int(here.sum()), _mean(k[here], document[here], draws))


def _mean(k: Floats, document: Ints, draws: int) -> Interval:
    """The mean over tokens, a ratio of two sums over documents."""
    names, own = np.unique(document, return_inverse=True)
    if len(names) < 2:
        return Interval(float(k.mean()), None, len(names), "documents")
    sums = np.stack([np.bincount(own, k), np.bincount(own)], axis=1)
    features, tokens = redrawn_sums(sums, draws).T
    return over_documents(float(k.mean()), (features / tokens).tolist(), len(names))


def _explained(k: Floats, own: Ints) -> float | None:
    spread = float(np.square(k - k.mean()).sum())
    if spread == 0:
        return None
    tokens = np.bincount(own)
    means = np.bincount(own, k) / np.maximum(tokens, 1)
    return float((tokens * np.square(means - k.mean())).sum() / spread)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """[n] the place of each number among the different ones, which are ``n_values``."""

    place: Ints
    n_values: int

    @classmethod
    def of(cls, values: NDArray[Any]) -> _Ranked:
        distinct, place = np.unique(values, return_inverse=True)
        return cls(place, len(distinct))

    def centred(self, times: Floats) -> tuple[Floats, float]:
        """[n] ranks less their mean, and the sum of their squares, where tokens occur so many ``times [n]``."""
        mass = np.bincount(self.place, times, minlength=self.n_values)
        ranks = mass.cumsum() - mass / 2 - mass.sum() / 2
        return ranks[self.place], float(mass @ np.square(ranks))


def _spearman(a: _Ranked, b: _Ranked, times: Floats) -> float | None:
    """Spearman's coefficient where token i occurs ``times[i]`` times; None where a side is constant."""
    (first, spread), (second, other) = a.centred(times), b.centred(times)
    if spread == 0 or other == 0:
        return None
    return float((times * first) @ second / np.sqrt(spread * other))
