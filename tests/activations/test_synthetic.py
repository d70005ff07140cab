"""What a synthetic token is made of is what the config says, and each token is a function of its number alone."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, nnls
from scipy.stats import norm

from apportion.activations import SyntheticConfig, SyntheticSource
from apportion.activations.synthetic import count_shares
from apportion.errors import InvalidConfig
from apportion.metrics import recovered, spearman
from apportion.recipes import find_recipe
from apportion.training import TrainConfig, train

SMALL = {"d_in": 16, "n_features": 48, "k": 5, "k_max": 20, "n_tokens": 2000}
READABLE = {"d_in": 32, "n_features": 32, "directions": "tight_frame", "k_max": 24, "n_tokens": 40_000}
"""Orthogonal features: a projection on each reads its magnitude off a token without noise."""


def make(base: dict, **changes) -> SyntheticSource:
    return SyntheticSource(SyntheticConfig(**{**base, **changes}))


def heldout(source: SyntheticSource) -> tuple[torch.Tensor, torch.Tensor]:
    """All held-out tokens [n, d_in] and their true counts [n]."""
    blocks = [block for part in ("calibrate", "evaluate") for block in source.blocks(part)]
    return torch.cat([block.x for block in blocks]), torch.cat([block.target for block in blocks])


def magnitudes(source: SyntheticSource) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, n_features] magnitudes of the held-out tokens, 0 where a feature is absent, and the counts [n]."""
    x, counts = heldout(source)
    read = x @ source.directions.T
    return torch.where(read > 1e-3, read, 0.0), counts


def test_a_token_is_a_function_of_its_number_alone():
    source, longer = make(SMALL), make(SMALL, n_tokens=5001)
    stream = source.stream(500, seed=3)
    seen = list(itertools.islice(stream, 3))
    stream.close()
    seen += [block for part in ("calibrate", "evaluate") for block in source.blocks(part)]
    every = {}
    stream = longer.stream(longer.n_train, seed=0)
    for batch in (next(stream), *longer.blocks("calibrate"), *longer.blocks("evaluate")):
        where = (64 * batch.document + batch.position).tolist()
        every |= {number: (x, n) for number, x, n in zip(where, batch.x, batch.target, strict=True)}
    stream.close()
    assert sorted(every) == list(range(5001))
    for batch in seen:
        for number, x, n in zip(
            (64 * batch.document + batch.position).tolist(), batch.x, batch.target, strict=True
        ):
            assert torch.equal(x, every[number][0]) and n == every[number][1]


def test_the_seed_decides_dictionary_and_tokens():
    first, again, other = make(SMALL), make(SMALL), make(SMALL, seed=1)
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(heldout(first)[0], heldout(again)[0])
    assert not torch.equal(first.directions, other.directions)
    assert not torch.equal(heldout(first)[1], heldout(other)[1])


def test_counts_are_those_of_the_features_in_the_token():
    found, counts = magnitudes(make(READABLE, noise=0))
    assert torch.equal((found > 0).sum(1).float(), counts)
    assert counts.min() >= 1 and counts.max() <= 24


@settings(max_examples=60, deadline=None)
@given(k_max=st.integers(2, 300), at=st.floats(0.02, 0.98), spread=st.floats(0.05, 4))
def test_the_mean_is_k_after_rounding_and_clipping(k_max, at, spread):
    k = 1 + at * (k_max - 1)
    shares = count_shares(k, spread, k_max)
    assert len(shares) == k_max and (shares >= 0).all()
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert shares @ np.arange(1, k_max + 1) == pytest.approx(k, rel=1e-9)


def test_shares_are_those_of_a_rounded_clipped_log_normal():
    edges = np.log(np.arange(1, 64) + 0.5)

    def shares(median):
        return np.diff(norm.cdf(edges, median, 0.8), prepend=0, append=1)

    median = brentq(lambda m: shares(m) @ np.arange(1, 65) - 16, 0, 5, xtol=1e-14)
    np.testing.assert_allclose(count_shares(16, 0.8, 64), shares(median), atol=1e-12)


def test_tokens_have_these_shares():
    source = make(SMALL, n_tokens=64_000)
    _, counts = heldout(source)
    expected = count_shares(5, 0.8, 20)
    measured = np.bincount(counts.int().numpy(), minlength=21)[1:] / len(counts)
    assert (np.abs(measured - expected) < 5 * np.sqrt(expected / len(counts)) + 1e-4).all()
    assert float(counts.mean()) == pytest.approx(5, abs=5 * float(counts.std()) / len(counts) ** 0.5)


@pytest.mark.parametrize("zipf", [0.0, 1.0, 1.7])
def test_features_are_drawn_without_replacement_by_zipf_weights(zipf):
    found, counts = magnitudes(make(READABLE, noise=0, zipf=zipf, k=1.6, k_max=2))
    weights = np.arange(1, 33) ** -zipf
    first = weights / weights.sum()
    # The second draw is by the weights that are left, whichever feature came first.
    second = np.array([sum(first[g] * first[f] / (1 - first[g]) for g in range(32) if g != f) for f in range(32)])
    for n, expected in ((1, first), (2, first + second)):
        tokens = found[counts == n]
        assert len(tokens) > 2000
        measured = (tokens > 0).double().mean(0).numpy()
        assert (np.abs(measured - expected) < 5 * np.sqrt(expected / len(tokens))).all()


def test_magnitudes_are_half_normal_above_one_times_the_scale_of_the_feature():
    found, _ = magnitudes(make(READABLE, noise=0, zipf=0, magnitude_spread=0.5))
    values = found[found > 0]
    assert values.min() > 0.999
    assert float(values.mean()) == pytest.approx(1 + 0.5 * (2 / np.pi) ** 0.5, abs=0.01)
    assert float(((values - 1) ** 2).mean()) == pytest.approx(0.25, rel=0.05)
    flat, _ = magnitudes(make(READABLE, noise=0, zipf=0, magnitude_spread=0, scale_spread=0.7))
    per_feature = [column[column > 0] for column in flat.T]
    assert all(column.max() - column.min() < 1e-4 for column in per_feature)
    assert 0.4 < float(torch.stack([column.mean() for column in per_feature]).log().std()) < 1.0


def test_noise_is_what_the_features_leave():
    clean, _ = heldout(make(SMALL, noise=0))
    noisy, _ = heldout(make(SMALL, noise=0.25))
    left = noisy - clean
    assert float(left.std()) == pytest.approx(0.25, rel=0.05)
    assert abs(float(left.mean())) < 0.01


def test_directions_are_unit_vectors():
    for kind in ("gaussian", "tight_frame"):
        directions = make(SMALL, directions=kind).directions.double()
        torch.testing.assert_close(directions.norm(dim=1), torch.ones(48).double(), rtol=0, atol=1e-6)
    overlap = (directions @ directions.T).square().sum()
    assert float(overlap) == pytest.approx(48**2 / 16, rel=1e-5)  # Welch's bound
    square = make(READABLE).directions
    torch.testing.assert_close(square @ square.T, torch.eye(32), rtol=0, atol=1e-5)


def test_the_truth_can_be_found():
    """With the true directions the counts are found nearly always; ‖x‖² alone ranks tokens well."""
    source = make({"n_tokens": 20_000})
    x, counts = heldout(source)
    assert (spearman(x.square().sum(1), counts) or 0) > 0.95
    true = source.directions.T.double().numpy()
    fitted = np.stack([nnls(true, row)[0] for row in x[:200].double().numpy()])
    assert (spearman(torch.from_numpy((fitted > 0.6).sum(1)), counts[:200]) or 0) > 0.995


def test_training_finds_the_true_features(tmp_path):
    source = make({}, d_in=32, n_features=64, k=3, k_max=8, zipf=0.5, n_tokens=80_000)
    run = find_recipe("token_choice").make(32, 96, 3, 0)
    trained = train({"run": run}, source, tmp_path, TrainConfig(n_tokens=200_000, batch_size=1024))["run"]
    random = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
    assert recovered(source.directions, trained.W_dec) > 0.6 > 0.1 > recovered(source.directions, random)


def test_the_description_is_json_and_tells_sources_apart():
    changes = ({}, {"seed": 1}, {"k": 6}, {"noise": 0.1}, {"zipf": 0.5}, {"n_tokens": 2001})
    described = [json.loads(json.dumps(make(SMALL, **change).describe())) for change in changes]
    assert len({d["fingerprint"] for d in described}) == len(changes)
    assert make(SMALL).describe() == described[0]
    assert SyntheticConfig.parse(described[1]["config"], "config") == make(SMALL, seed=1).config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 20}, "k = 20, k_max = 20"),
        ({"k": 60, "k_max": 64}, "n_features = 48"),
        ({"k": 1}, "'k' = 1"),
        ({"d_in": 0}, "'d_in' = 0"),
        ({"n_tokens": 0}, "'n_tokens' = 0"),
        ({"zipf": -0.1}, "'zipf' = -0.1"),
        ({"zipf": 3.5}, "'zipf' = 3.5"),
        ({"noise": float("inf")}, "'noise' = inf"),
        ({"spread": 0}, "'spread' = 0"),
        ({"seed": -1}, "'seed' = -1"),
        ({"directions": "round"}, "'directions' = 'round'"),
        ({"exponent": 1}, "unknown key 'exponent'"),
    ],
)
def test_settings_that_cannot_be_made(changes, says):
    with pytest.raises(InvalidConfig) as error:
        SyntheticConfig.parse({**SMALL, **changes}, "synthetic")
    assert says in str(error.value) and "\n" not in str(error.value)
