"""Sparse probes: what is planted is found, and shuffled labels give no more than the baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apportion.code import Code
from apportion.errors import InvalidInput
from apportion.metrics import Classes, DocumentMeans, sparse_probe

NAMES = ["prose", "play", "review", "speech"]
PLANTED = [[7, 3], [20, 11], [0, 39], [15, 30]]
D_SAE = 40


def planted(documents: int = 300, seed: int = 0) -> tuple[Code, Classes]:
    """Documents of four registers, each with two features of its own, among noise of all features."""
    random = np.random.default_rng(seed)
    of = random.choice(4, documents, p=[0.4, 0.3, 0.2, 0.1])
    z = random.exponential(0.2, (documents, D_SAE)) * (random.random((documents, D_SAE)) < 0.5)
    for register, (first, second) in enumerate(PLANTED):
        own = of == register
        z[own, first] += random.exponential(1.0, own.sum()) + 0.5
        z[own, second] += random.exponential(0.8, own.sum())
    return Code.from_dense(torch.from_numpy(z)), Classes(NAMES, of)


def test_means_are_those_of_the_tokens_however_they_are_cut() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.rand(500, 30, generator=g) * (torch.rand(500, 30, generator=g) < 0.2)
    document = torch.randint(0, 9, (500,), generator=g)
    document[document == 4] = 5
    for sizes in ([500], [1, 99, 300, 100]):
        means = DocumentMeans(9, 30)
        for block, own in zip(z.split(sizes), document.split(sizes), strict=True):
            means.update(Code.from_dense(block), own)
        found = means.result()
        dense = found.to_dense()
        for number in range(9):
            here = z[document == number].double()
            want = here.mean(0) if len(here) else torch.zeros(30, dtype=torch.float64)
            assert torch.allclose(dense[number], want, atol=1e-14)
        assert torch.equal(means.tokens, torch.bincount(document, minlength=9))
        assert torch.equal(means.result().values, found.values), "result may be asked for again"


def test_planted_features_are_found_and_more_of_them_tell_more() -> None:
    pytest.importorskip("sklearn")
    means, labels = planted()
    training = np.arange(300) < 200
    one, two, five = (sparse_probe(means, labels, training, n) for n in (1, 2, 5))
    for register, own in enumerate(PLANTED):
        assert one.chosen[NAMES[register]] == own[:1]
        assert set(own) <= set(five.chosen[NAMES[register]])
        assert five.chosen[NAMES[register]][:2] == two.chosen[NAMES[register]]
    assert one.accuracy.mean > one.baseline + 0.3 and one.accuracy.half is not None
    assert two.accuracy.mean >= one.accuracy.mean and two.accuracy.mean > 0.9
    assert (one.accuracy.n, one.accuracy.over, one.classes, one.training) == (100, "documents", 4, 200)
    p = one.accuracy.mean
    assert one.accuracy.half == pytest.approx(1.984 * np.sqrt(p * (1 - p) / 99), rel=0.1)


def test_shuffled_labels_give_the_baseline() -> None:
    pytest.importorskip("sklearn")
    means, labels = planted(600)
    shuffled = Classes(NAMES, np.random.default_rng(1).permutation(labels.of))
    training = np.arange(600) < 400
    for n in (1, 5):
        found = sparse_probe(means, shuffled, training, n)
        assert found.accuracy.half is not None
        assert abs(found.accuracy.mean - found.baseline) <= found.accuracy.half


def test_what_is_held_out_and_what_has_no_label_decides_nothing() -> None:
    pytest.importorskip("sklearn")
    means, labels = planted()
    training = np.arange(300) < 200
    before = sparse_probe(means, labels, training, 2)
    z = means.to_dense()
    z[250:] = z[250:].flip(1) + 5
    of = labels.of.copy()
    of[250:] = -1
    after = sparse_probe(Code.from_dense(z), Classes(NAMES, of), training, 2)
    assert after.chosen == before.chosen and after.accuracy.n == 50


def test_refusals() -> None:
    means, labels = planted(20)
    training = np.arange(20) < 10
    for wrong in (
        (Classes(NAMES, np.zeros(20, np.int64)), training, 1),
        (labels, np.ones(20, bool), 1),
        (labels, training, 0),
        (labels, training, D_SAE + 1),
    ):
        with pytest.raises(InvalidInput, match="make no probe"):
            sparse_probe(means, *wrong)
