"""The step benchmark: its rows, its parts, and (slow) the figures that the README prints."""

from __future__ import annotations

import json

import pytest

from apportion.bench.step import PARTS, bench_step
from apportion.cli import main
from apportion.errors import InvalidConfig


def test_rows_and_parts():
    rows = bench_step(
        ["token_choice", "mutual_choice"], d_in=64, d_sae=1024, k=8, batch=128, rounds=3, parts=True
    )
    assert [row["recipe"] for row in rows] == [
        *("token_choice", "token_choice+aux_k", "mutual_choice", "mutual_choice+aux_k")
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["step_s"] / row["product_s"])
        assert row["tokens_per_s"] == pytest.approx(128 / row["step_s"])
        assert set(row["parts"]) == {*PARTS, "rest"}
        assert all(row["parts"][part] > 0 for part in PARTS)


def test_aux_is_really_computed_in_its_row():
    plain, aux = bench_step(["token_choice"], d_in=32, d_sae=512, k=4, batch=64, rounds=2, parts=True)
    assert aux["parts"]["losses"] > 2 * plain["parts"]["losses"]
    with pytest.raises(InvalidConfig, match="rounds = 0"):
        bench_step(["token_choice"], rounds=0)


def test_the_command_prints_json(capsys):
    sizes = ["--d-in", "32", "--d-sae", "256", "--k", "4", "--batch", "64", "--rounds", "2"]
    assert main(["bench", "step", "--recipe", "token_choice", *sizes, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"recipe", "step_s", "product_s", "ratio", "tokens_per_s"} <= set(rows[0])


@pytest.mark.slow
def test_a_step_costs_little_more_than_the_product():
    rows = bench_step(["token_choice", "mutual_choice"], parts=True, memory=True)
    plain = [row for row in rows if not row["recipe"].endswith("+aux_k")]
    for row in rows:
        assert sum(row["parts"].values()) == pytest.approx(row["step_s"], rel=0.05)
    for row in plain:
        assert row["peak_over_affinities"] <= 1.5
    too_slow = [f"{row['recipe']} {row['ratio']:.2f}" for row in plain if row["ratio"] > 1.6]
    if too_slow and rows[0]["noisy"]:
        pytest.skip(f"{too_slow}, but the product itself varied by {rows[0]['product_spread']:.0%}: busy machine")
    assert not too_slow
