"""The curve is recovered from exact, noisy and damaged densities; quotas keep their bounds, order and sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.errors import InvalidInput
from apportion.ops.zipf import FEWEST, ZipfMandelbrot, fit_zipf, project_quotas, ranks, whole_quotas

CURVES = [ZipfMandelbrot(0.3, 0.0, 1.0), ZipfMandelbrot(0.3, 3.0, 0.7), ZipfMandelbrot(8.0, 40.0, 1.3)]
CURVES += [ZipfMandelbrot(0.2, -0.5, 1.0)]


def densities(curve: ZipfMandelbrot, n: int) -> torch.Tensor:
    return curve.at(torch.arange(1, n + 1))


def shuffled(density: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return density[torch.randperm(len(density), generator=torch.Generator().manual_seed(seed))]


def off(found: ZipfMandelbrot, true: ZipfMandelbrot, n: int) -> float:
    """The largest difference of log density over the ranks 1 ... n."""
    return float((densities(found, n).log() - densities(true, n).log()).abs().max())


@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("n", [50, 1000, 16_384])
def test_an_exact_curve_is_recovered(curve, n):
    found = fit_zipf(shuffled(densities(curve, n)).float())
    assert off(found, curve, n) < 0.002
    assert found.s == pytest.approx(curve.s, rel=0.002)
    assert 1 + found.beta == pytest.approx(1 + curve.beta, rel=0.005)
    assert math.log(found.C) == pytest.approx(math.log(curve.C), abs=0.01)


@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("n", [1000, 16_384])
def test_counts_of_100_000_tokens_are_enough(curve, n):
    generator = torch.Generator().manual_seed(n)
    counts = torch.poisson(densities(curve, n) * 100_000, generator=generator)
    assert off(fit_zipf(shuffled(counts / 100_000)), curve, n) < 0.06


def test_ties_of_one_firing_do_not_bend_the_tail():
    curve, n = ZipfMandelbrot(0.1, 0.0, 1.0), 16_384  # the rarest feature is expected 0.1 times
    counts = torch.poisson(densities(curve, n) * 16_384, generator=torch.Generator().manual_seed(0))
    assert float((counts == 1).sum() / (counts > 0).sum()) > 0.3
    assert off(fit_zipf(shuffled(counts / 16_384)), curve, n) < 0.2


@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("n", [100, 1000, 16_384])
def test_the_low_end_does_not_matter(curve, n):
    alive = int(0.7 * n)
    fading = torch.exp(-8 * torch.linspace(0, 1, n - alive))
    for tail in (torch.zeros(n - alive), torch.full((n - alive,), 1e-3), fading):
        density = densities(curve, n)
        density[alive:] *= tail
        assert off(fit_zipf(shuffled(density)), curve, alive) < 0.01


@given(st.integers(0, 10_000), st.integers(FEWEST, 400))
@settings(max_examples=40, deadline=None)
def test_the_order_of_features_does_not_matter(seed, n):
    density = torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 4 + 1e-6
    assert fit_zipf(density) == fit_zipf(shuffled(density, seed))


@given(st.integers(0, 10_000), st.floats(1e-6, 1e3))
@settings(max_examples=40, deadline=None)
def test_scaled_densities_give_a_scaled_curve(seed, factor):
    density = torch.rand(300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4 + 1e-6
    plain, scaled = fit_zipf(density), fit_zipf(density * factor)
    assert off(scaled, plain._replace(C=plain.C * factor), 300) < 1e-3


@pytest.mark.parametrize(
    "density",
    [
        torch.ones(FEWEST),
        torch.full((1000,), 1e-30),
        torch.cat([torch.ones(1), torch.full((500,), 1e-30)]),
        torch.cat([torch.ones(500), torch.full((500,), 1e-45)]),
        torch.logspace(0, -37, 200),
        torch.tensor([float("nan"), float("inf"), -1.0] + [0.1] * 20),
    ],
)
def test_degenerate_densities_give_a_finite_falling_curve(density):
    curve = fit_zipf(density)
    assert all(math.isfinite(v) for v in curve)
    assert curve.C > 0 and curve.beta >= -0.9 and 0 < curve.s <= 30
    heights = densities(curve, len(density))
    assert bool(heights.isfinite().all()) and bool((heights.diff() <= 0).all())


def test_too_few_densities_are_refused_with_the_number_that_would_do():
    density = torch.zeros(100)
    density[: FEWEST - 1] = 0.5
    with pytest.raises(InvalidInput, match=rf"^{FEWEST - 1} features .* {FEWEST}; .* until 1 more fire$"):
        fit_zipf(density)
    density[FEWEST] = 0.5
    fit_zipf(density)


def test_a_fit_leaves_its_input_alone():
    density = shuffled(densities(CURVES[1], 100))
    before = density.clone()
    fit_zipf(density), ranks(density), project_quotas(density, 50, 8)
    assert torch.equal(density, before)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_ranks_count_the_denser_features_and_equal_ones_before(counts):
    found = ranks(torch.tensor(counts, dtype=torch.float32))
    order = sorted(range(len(counts)), key=lambda f: (-counts[f], f))
    assert [int(found[f]) for f in order] == list(range(1, len(counts) + 1))
    assert found.dtype == torch.int64


features = st.integers(1, 60)


def wants(seed: int, n: int, steepness: float) -> torch.Tensor:
    """Between uniform and far too steep for any bound, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(n, generator=generator, dtype=torch.float64) ** steepness
    return draws * (torch.rand(n, generator=generator) < 0.9)


@given(
    st.integers(0, 10_000), features, st.sampled_from([0.0, 1.0, 8.0, 60.0]), st.floats(0, 1), st.integers(1, 40)
)
@settings(max_examples=300, deadline=None)
def test_projected_quotas_keep_bounds_order_and_sum(seed, n, steepness, share, most):
    wanted, total = wants(seed, n, steepness), share * n * most
    least = 1 if total >= n else 0
    quota = project_quotas(wanted, total, most)
    assert quota.dtype == torch.float64
    assert float(quota.sum()) == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert least <= float(quota.min()) and float(quota.max()) <= most
    assert bool((quota[wanted.argsort()].diff() >= -1e-12 * most).all())
    inside = (quota > least) & (quota < most) & (wanted > 0)
    if bool(inside.any()):  # one factor for all that are not at a bound, and no other feature is
        factor = float((quota[inside] / wanted[inside]).median())
        clamped = (factor * wanted).clamp(least, most)
        assert torch.allclose(quota[wanted > 0], clamped[wanted > 0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(project_quotas(wanted * 7e-5, total, most), quota, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ((0.0, 1.0, 1.0), "C = 0,"),
        ((-0.3, 1.0, 1.0), "C = -0.3,"),
        ((math.inf, 1.0, 1.0), "C = inf,"),
        ((0.3, -1.0, 1.0), "beta = -1,"),
        ((0.3, math.nan, 1.0), "beta = nan,"),
        ((0.3, 1.0, 0.0), "s = 0,"),
        ((0.3, 1.0, -1.0), "s = -1,"),
        ((0.3, 1.0, 30.5), "s = 30.5,"),
        ((0.3, 1.0, math.nan), "s = nan,"),
    ],
)
def test_a_curve_that_does_not_fall_is_refused(curve, words):
    with pytest.raises(InvalidInput, match=rf"^{words} expected .*; (give|fit)"):
        ZipfMandelbrot(*curve).at(torch.arange(1, 5))


def test_the_ends_of_the_range_are_curves():
    for curve in (ZipfMandelbrot(0.3, -0.99, 30.0), ZipfMandelbrot(1e-9, 0.0, 1e-6)):
        assert (densities(curve, 9).diff() < 0).all()


def test_a_least_quota_without_room_is_refused_with_what_would_do():
    with pytest.raises(InvalidInput, match=r"at least 48 tokens or a least quota of at most 0\.166667$"):
        project_quotas(torch.ones(12), 2, 8, least=1.0)
    project_quotas(torch.ones(12), 2 * 48 / 8, 48, least=1.0)
    project_quotas(torch.ones(12), 2, 8, least=2 / 12)
    with pytest.raises(InvalidInput, match=r"; use a least quota of 0$"):
        project_quotas(torch.ones(12), 0, 8, least=1.0)


def test_wanting_ones_gives_uniform_quotas():
    assert torch.allclose(project_quotas(torch.ones(48), 100, 8), torch.full((48,), 100 / 48).double())
    assert torch.equal(project_quotas(torch.ones(16_384), 65_536, 2048), torch.full((16_384,), 4.0).double())


def test_features_that_want_nothing_share_what_the_others_cannot_hold():
    wanted = torch.tensor([5.0, 0.0, 1.0, 0.0, 0.0])
    assert project_quotas(wanted, 4, 8)[[1, 3, 4]].sum() == 0
    assert project_quotas(wanted, 12, 8)[[1, 3, 4]].tolist() == [1, 1, 1]
    assert project_quotas(wanted, 22, 8).tolist() == [8, 2, 8, 2, 2]
    assert project_quotas(torch.zeros(4), 10, 8).tolist() == [2.5] * 4


def test_a_curve_at_full_size_is_projected():
    wanted = densities(ZipfMandelbrot(1.0, 2.0, 1.0), 16_384)
    quota = project_quotas(wanted, 65_536, 2048)
    assert float(quota.sum()) == pytest.approx(65_536, rel=1e-12)
    assert float(quota.max()) == 2048 and float(quota.min()) == 1


def test_quotas_that_fit_no_batch_are_refused_with_the_batch_that_would_do():
    with pytest.raises(
        InvalidInput, match=r"^a budget of 100 .* 9 features .* 8 tokens each; .* at least 12 tokens$"
    ):
        project_quotas(torch.ones(9), 100, 8)
    project_quotas(torch.ones(9), 100, 12)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="finite"):
            project_quotas(torch.tensor([1.0, bad]), 1, 8)


@given(st.integers(0, 10_000), features, st.sampled_from([0.0, 1.0, 8.0]), st.floats(0, 1), st.integers(0, 10**9))
@settings(max_examples=300, deadline=None)
def test_whole_quotas_sum_to_the_budget_within_bounds(seed, n, steepness, share, step):
    total, most = round(share * n * 12), 12
    quota = project_quotas(wants(seed, n, steepness), total, most)
    whole = whole_quotas(quota, step)
    assert whole.dtype == torch.int64
    assert int(whole.sum()) == total
    assert bool((whole >= (quota - 1e-6).floor()).all()) and bool((whole <= (quota + 1e-6).ceil()).all())
    assert int(whole.max()) <= most and (total < n or int(whole.min()) >= 1)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=60), st.integers(0, 10**9))
@settings(max_examples=300, deadline=None)
def test_a_budget_that_is_not_whole_is_never_exceeded(quotas, step):
    quota = torch.tensor(quotas, dtype=torch.float64)
    whole = whole_quotas(quota, step)
    assert int(whole.sum()) == math.floor(math.fsum(quotas) + 1e-6)
    assert bool((whole >= quota.floor()).all()) and bool((whole <= quota.ceil()).all())


@pytest.mark.parametrize("steepness", [0.0, 1.0, 8.0])
def test_whole_quotas_average_to_the_quotas_and_no_feature_waits_for_ever(steepness):
    n, steps, start = 40, 600, 12_345
    for total in (29, 100):
        quota = project_quotas(wants(3, n, steepness) + 1e-4, total, 12)
        given_out = torch.stack([whole_quotas(quota, start + t) for t in range(steps)])
        assert float((given_out.double().mean(0) - quota).abs().max()) <= 2 / steps
        for f in range(n):
            wait = math.ceil(2 / float(quota[f])) + 1
            windows = given_out[:, f].unfold(0, min(wait, steps), 1).sum(1)
            assert wait > steps or int(windows.min()) > 0


def test_rounding_at_full_size_breaks_nothing():
    generator = torch.Generator().manual_seed(0)
    tenths = torch.full((65_536,), 0.1, dtype=torch.float64)
    near_whole = 1 + (torch.rand(65_536, generator=generator, dtype=torch.float64) - 0.5) * 1e-11
    for quota in (tenths, near_whole, near_whole.clamp(min=1), tenths + 0.9):
        budget = math.floor(math.fsum(quota.tolist()) + 1e-6)
        for step in (0, 1, 2, 10**12):
            whole = whole_quotas(quota, step)
            assert int(whole.sum()) == budget
            assert bool((whole >= quota.floor()).all()) and bool((whole <= quota.ceil()).all())
