"""The step benchmark: its rows, its parts, and (slow) the figures that the README prints."""

from __future__ import annotations

import json
import time

import pytest
import torch

from apportion.bench.step import PARTS, bench_step
from apportion.cli import main
from apportion.clock import Clock
from apportion.errors import InvalidConfig
from apportion.training import Run


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


def test_memory_is_given_in_bytes_too_and_the_optimisers_apart(monkeypatch):
    from apportion.bench import step

    monkeypatch.setattr(step, "peak_memory", lambda config, batch: 3 * 4 * batch * config.sae.d_sae)
    plain, aux = bench_step(["token_choice"], d_in=32, d_sae=512, k=4, batch=64, rounds=1, memory=True)
    assert plain["peak_over_affinities"] == pytest.approx(3)
    assert plain["peak_gb"] == pytest.approx(3 * 4 * 64 * 512 / 1e9)
    moments = 2 * 4 * (2 * 32 * 512 + 512 + 32)
    assert plain["optimizer_gb"] == pytest.approx(moments / 1e9, rel=1e-3)
    assert not {"peak_gb", "optimizer_gb"} & set(aux)


def test_what_stands_in_place_of_reconstruction_is_in_every_row(monkeypatch):
    from apportion.bench import step

    prepared = []
    monkeypatch.setattr(step, "Run", lambda config, b_dec: prepared.append(config) or Run(config, b_dec))
    rows = bench_step(["matryoshka"], d_in=32, d_sae=256, k=4, batch=64, rounds=2)
    assert [row["recipe"] for row in rows] == ["matryoshka", "matryoshka+aux_k"]
    kinds = [[objective.kind for objective in config.objectives] for config in prepared]
    assert kinds == [["nested"], ["nested", "aux_k"]]


def test_processor_seconds_leave_out_what_others_take(monkeypatch):
    from apportion.bench import step

    train_step, threads = step.train_step, torch.get_num_threads()
    used = []

    def beside_others(*args, **kwargs):
        used.append(torch.get_num_threads())
        time.sleep(0.05)
        return train_step(*args, **kwargs)

    monkeypatch.setattr(step, "train_step", beside_others)
    sizes = {"d_in": 32, "d_sae": 256, "k": 4, "batch": 64, "rounds": 3}
    assert all(row["step_s"] > 0.05 for row in bench_step(["token_choice"], **sizes))
    used.clear()
    assert all(0 < row["step_s"] < 0.05 for row in bench_step(["token_choice"], **sizes, processor=True))
    assert used[-1] == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(InvalidConfig, match="with parts = True, device = 'cpu'"):
        bench_step(["token_choice"], **sizes, processor=True, parts=True)


def test_the_command_takes_processor_seconds(monkeypatch, capsys):
    from apportion.cli import bench

    asked = []
    real = bench.bench_step
    monkeypatch.setattr(bench, "bench_step", lambda *a, **options: asked.append(options) or real(*a, **options))
    sizes = ["--d-in", "32", "--d-sae", "256", "--k", "4", "--batch", "64", "--rounds", "2"]
    for more in ([], ["--processor"]):
        assert main(["bench", "step", "--recipe", "token_choice", *sizes, *more]) == 0
    assert [options["processor"] for options in asked] == [False, True]
    assert main(["bench", "oracle", "--processor"]) == 2
    assert "--processor belongs to 'bench step'" in capsys.readouterr().err


def test_a_row_of_first_steps_is_of_the_beginning_of_a_run(monkeypatch):
    """When half of all affinities are above zero nothing is annealed yet: p is 1."""
    from apportion.bench import step

    train_step, seen = step.train_step, []

    def spied(run, x, clock, **rest):
        seen.append((run, clock.progress))
        return train_step(run, x, clock, **rest)

    monkeypatch.setattr(step, "train_step", spied)
    rows = bench_step(["p_anneal"], d_in=32, d_sae=256, k=4, batch=64, rounds=2, parts=True)
    assert [row["recipe"] for row in rows] == ["p_anneal", "p_anneal, dense"]
    runs = list(dict.fromkeys(run for run, _ in seen))
    late = [max(progress for one, progress in seen if one is run) for run in runs]
    exponents = [
        run.config.sae.allocator.p(Clock(round(100 * p), 100)) for run, p in zip(runs, late, strict=True)
    ]
    assert exponents[0] < 0.8
    assert exponents[1] == 1


def test_the_command_prints_json(capsys):
    sizes = ["--d-in", "32", "--d-sae", "256", "--k", "4", "--batch", "64", "--rounds", "2"]
    assert main(["bench", "step", "--recipe", "token_choice", *sizes, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"recipe", "step_s", "product_s", "ratio", "tokens_per_s"} <= set(rows[0])


LIMITS = {
    "token_choice": 1.6,
    "mutual_choice": 1.6,
    "soft_sae": 1.9,
    "matryoshka": 1.8,
    "feature_choice": 1.8,
    "feature_choice+aux_zipf": 1.8,
    "jump_relu": 2.0,
    "gated": 2.5,
    "relu_l1": 2.5,
    "p_anneal": 2.5,
    **{f"{recipe}, dense": 7.0 for recipe in ("jump_relu", "gated", "relu_l1", "p_anneal")},
}
"""Of rows, as multiples of the product."""


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "limit"), [("linear", 1.9), ("own", 4.0)])
def test_other_estimators_of_k_cost_what_they_may(estimator, limit):
    setting = f"soft_sae.allocator.budget.estimator={estimator}"
    row = bench_step(["soft_sae"], settings=[setting])[0]
    if row["ratio"] > limit and row["noisy"]:
        pytest.skip(
            f"{row['ratio']:.2f}, but the product itself varied by {row['product_spread']:.0%}: busy machine"
        )
    assert row["ratio"] <= limit


def over_the_limit(rows):
    """Rows that cost more than they may; every limit has its row."""
    ratios = {row["recipe"]: row["ratio"] for row in rows}
    return [f"{recipe} {ratios[recipe]:.2f}" for recipe, limit in LIMITS.items() if ratios[recipe] > limit]


def test_every_row_with_a_limit_is_held_to_it():
    rows = [{"recipe": recipe, "ratio": limit} for recipe, limit in LIMITS.items()]
    assert over_the_limit([*rows, {"recipe": "token_choice+aux_k", "ratio": 9.0}]) == []
    for row in rows:
        slow = {**row, "ratio": row["ratio"] + 0.01}
        assert len(over_the_limit([slow if other is row else other for other in rows])) == 1
    with pytest.raises(KeyError, match="gated, dense"):
        over_the_limit([row for row in rows if row["recipe"] != "gated, dense"])


@pytest.mark.slow
def test_a_step_costs_little_more_than_the_product():
    rows = bench_step([recipe for recipe in LIMITS if not {"+", ","} & set(recipe)], parts=True, memory=True)
    for row in rows:
        assert sum(row["parts"].values()) == pytest.approx(row["step_s"], rel=0.05)
    begin_dense = {row["recipe"].removesuffix(", dense") for row in rows if row["recipe"].endswith(", dense")}
    for row in rows:
        if "peak_over_affinities" in row and row["recipe"] not in begin_dense:
            assert 0.9 <= row["peak_over_affinities"] <= 1.5
    too_slow = over_the_limit(rows)
    if too_slow and rows[0]["noisy"]:
        pytest.skip(f"{too_slow}, but the product itself varied by {rows[0]['product_spread']:.0%}: busy machine")
    assert not too_slow
