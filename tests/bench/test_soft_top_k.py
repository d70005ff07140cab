"""The benchmark of the soft top-k: its rows, its command, and (slow) its figures."""

from __future__ import annotations

import json

import pytest

from apportion.bench.soft_top_k import ALPHAS, PAIRS_ALPHAS, bench_soft_top_k
from apportion.cli import main
from apportion.errors import InvalidConfig

SMALL = {"d_in": 16, "d_sae": 256, "k": 4}


def test_rows():
    rows = bench_soft_top_k(**SMALL, batch=32, pairs_batch=64, rounds=3)
    assert [(row["door"], row["alpha"]) for row in rows] == [
        *(("dense", alpha) for alpha in ALPHAS),
        *(("pairs", alpha) for alpha in PAIRS_ALPHAS),
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["product_s"])
        if row["door"] == "dense":
            assert row["batch"] == 32
            assert row["times_faster"] == pytest.approx(row["sort_s"] / row["seconds"])
        else:
            assert row["batch"] == 64
            assert row["times_faster"] is None


def test_sizes_out_of_range_are_refused():
    with pytest.raises(InvalidConfig, match="rounds = 0"):
        bench_soft_top_k(rounds=0)
    with pytest.raises(InvalidConfig, match="k = 99"):
        bench_soft_top_k(d_sae=64, k=99)


def test_the_command_prints_json(capsys):
    sizes = ["--d-in", "16", "--d-sae", "256", "--k", "4", "--batch", "32", "--rounds", "1"]
    assert main(["bench", "soft-top-k", *sizes, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"door", "alpha", "seconds", "product_s", "ratio", "times_faster"} <= set(rows[0])
    assert {row["batch"] for row in rows} == {32}


@pytest.mark.slow
def test_the_operator_costs_half_a_product():
    rows = {(row["door"], row["alpha"]): row for row in bench_soft_top_k()}
    limits = {("dense", 0.01): 0.5, ("pairs", 1e-4): 0.25, ("pairs", 0.01): 0.25}
    too_slow = [f"{key}: {rows[key]['ratio']:.2f}" for key, limit in limits.items() if rows[key]["ratio"] > limit]
    if too_slow and any(row["noisy"] for row in rows.values()):
        pytest.skip(f"{too_slow}, but the product itself varied by more than a tenth: busy machine")
    assert not too_slow
    assert rows["dense", 0.01]["times_faster"] >= 10
