"""The oracle's benchmark: its rows, and (slow) the figure that is promised."""

from __future__ import annotations

import json

import pytest

from apportion.bench.oracle import bench_oracle
from apportion.cli import main
from apportion.errors import InvalidConfig


def test_a_row_per_recipe_as_json(capsys):
    sizes = ["--d-in", "32", "--d-sae", "256", "--k", "4", "--k-max", "40", "--batch", "512", "--rounds", "2"]
    assert main(["bench", "oracle", "--recipe", "token_choice,mutual_choice", *sizes, "--json"]) == 0
    fixed, mutual = json.loads(capsys.readouterr().out)
    assert fixed["ratio"] > 1 and fixed["with_oracle_s"] > fixed["evaluate_s"] > 0
    assert fixed["allocation_efficiency"] == pytest.approx(0, abs=1e-4)
    assert mutual["recipe"] == "mutual_choice" and mutual["allocation_efficiency"] <= 1
    assert fixed["tokens"] == mutual["tokens"] == 512


def test_it_needs_something_to_measure():
    with pytest.raises(InvalidConfig, match="tokens = 0"):
        bench_oracle(tokens=0)


@pytest.mark.slow
def test_an_evaluation_with_the_oracle_takes_at_most_three_times_as_long():
    (row,) = bench_oracle(tokens=8192, rounds=3)
    assert row["ratio"] <= 3
