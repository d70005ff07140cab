"""Bins and rank correlations with intervals, against naive ones and against what is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apportion.errors import InvalidInput
from apportion.metrics import Classes, relations, spearman
from apportion.metrics.adaptivity import quantile_bins, rank_correlation
from apportion.metrics.intervals import over_documents, redrawn_documents


def documents_of(n: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).integers(0, 12, n)) * 7


def test_bins_partition_by_value_and_hold_about_a_tenth_each() -> None:
    values = np.random.default_rng(0).normal(size=1003)
    own = quantile_bins(values)
    assert set(own) == set(range(10)) and np.ptp(np.bincount(own)) <= 2
    assert all(values[own == b].max() < values[own == b + 1].min() for b in range(9))


def test_equal_values_share_a_bin() -> None:
    assert quantile_bins(np.array([3.0, 1.0, 3.0, 8.0])).tolist() == [1, 0, 1, 2]
    values = np.concatenate([np.zeros(500), np.arange(1.0, 101)])
    own = quantile_bins(values)
    assert set(own[values == 0]) == {0} and set(own) == set(range(own.max() + 1))


def test_bins_against_naive_means() -> None:
    random = np.random.default_rng(1)
    document = documents_of(600)
    values, k = random.normal(size=600), random.integers(0, 40, 600)
    values[::50] = np.nan
    words = Classes(["noun", "none of these", "verb"], random.choice([-1, 0, 2], 600))
    number, word = relations(k, {"number": values, "word": words}, document, draws=50)
    known = ~np.isnan(values)
    assert number.tokens == known.sum() == sum(one.tokens for one in number.bins) and number.documents == 12
    assert number.rho is not None
    assert number.rho.mean == pytest.approx(spearman(torch.tensor(k[known]), torch.tensor(values[known])))
    for one in number.bins:
        here = known & (values >= one.low) & (values <= one.high)
        assert here.sum() == one.tokens and one.k.mean == pytest.approx(k[here].mean())
        assert one.k.n == len(set(document[here])) and one.k.half is not None and one.k.half > 0
    assert word.rho is None and {one.label for one in word.bins} == {"noun", "verb"}
    assert word.bins[0].k.mean >= word.bins[1].k.mean
    assert word.tokens == (words.of >= 0).sum()


def test_ranks_are_drawn_anew_with_their_documents() -> None:
    """The interval is that of Spearman's coefficient of the tokens themselves, written out draw by draw."""
    random = np.random.default_rng(2)
    document = documents_of(200)
    values = random.integers(0, 30, 200)
    k = values // 3 + random.integers(0, 9, 200)
    names, own = np.unique(document, return_inverse=True)
    naive = []
    for times in redrawn_documents(len(names), 40):
        tokens = np.repeat(np.arange(200), times[own].astype(int))
        naive.append(spearman(torch.tensor(k[tokens]), torch.tensor(values[tokens])))
    found = rank_correlation(k, values, document, 40)
    assert found is not None and found.half == pytest.approx(over_documents(0.0, naive, len(names)).half)


def test_explained_is_one_where_classes_decide_and_nothing_where_they_do_not() -> None:
    of = np.repeat(np.arange(4), 50)
    names = list("abcd")
    document = np.arange(200) // 5
    (decided,) = relations(of * 3 + 1, {"class": Classes(names, of)}, document, draws=20)
    assert decided.explained == pytest.approx(1) and decided.bins[0].label == "d"
    assert all(one.k.half == pytest.approx(0, abs=1e-12) for one in decided.bins)
    (blind,) = relations(np.tile([1, 2], 100), {"class": Classes(names, of)}, document, draws=20)
    assert blind.explained == pytest.approx(0)


def test_a_constant_k_follows_nothing() -> None:
    document = documents_of(100)
    (found,) = relations(np.full(100, 32), {"x": np.arange(100.0)}, document, draws=20)
    assert found.rho is None and found.explained is None
    assert all(one.k.mean == 32 and one.k.half in (0, None) for one in found.bins)


def test_one_document_has_no_interval() -> None:
    (found,) = relations(np.arange(20), {"x": np.arange(20.0)}, np.zeros(20), draws=20)
    assert found.rho is not None and (found.rho.mean, found.rho.half) == (1, None)
    assert {one.k.half for one in found.bins} == {None}


def test_the_interval_covers_zero_19_times_in_20_though_tokens_of_a_document_are_alike() -> None:
    """k and the covariate each have a level of the document, and nothing to do with each other."""
    random = np.random.default_rng(5)
    covered, rounds, documents = 0, 200, 40
    for _ in range(rounds):
        document = np.repeat(np.arange(documents), 6)
        a, b = (random.normal(size=documents)[document] + random.normal(size=len(document)) for _ in "ab")
        found = rank_correlation(a, b, document, 60)
        assert found is not None and found.half is not None
        covered += abs(found.mean) <= found.half
    assert 0.91 <= covered / rounds <= 0.99


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="3 tokens have 2 entries of 'x'"):
        relations(np.ones(3), {"x": np.ones(2)}, np.zeros(3))
    with pytest.raises(InvalidInput, match="none of the 2 tokens has 'x'"):
        relations(np.ones(2), {"x": np.full(2, np.nan)}, np.zeros(2))
