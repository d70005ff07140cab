"""The step benchmark on a card: refusals and arithmetic here, the table where there is one (``-m gpu``)."""

from __future__ import annotations

import json

import pytest
import torch

from apportion.bench.card import Work, check_device, rates, work_of_step
from apportion.bench.step import bench_step
from apportion.bench.timing import products
from apportion.cli import main
from apportion.errors import InvalidConfig
from apportion.training import step

needs_no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


@needs_no_card
def test_without_a_card_it_says_so(capsys):
    assert main(["bench", "step", "--device", "cuda", "--dtype", "bf16"]) == 2
    assert "torch finds no card here" in capsys.readouterr().err


def test_parts_and_memory_are_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device("cuda", parts=False, memory=False)
    for wanted in ({"parts": True, "memory": False}, {"parts": False, "memory": True}):
        check_device("cpu", **wanted)
        with pytest.raises(InvalidConfig, match="cpu only"):
            check_device("cuda", **wanted)


@pytest.mark.parametrize("option", [["--device", "cuda"], ["--dtype", "bf16"]])
def test_other_benchmarks_refuse_what_they_would_ignore(option, capsys):
    assert main(["bench", "soft-top-k", *option]) == 2
    assert "belong to 'bench step'" in capsys.readouterr().err


def test_the_work_of_a_step_by_hand():
    work = work_of_step(n=3, d_in=5, d_sae=7, entries=4, itemsize=2)
    assert work.flops == 2 * (3 * 5 * 7) + 4 * (2 * 4 * 5)
    assert work.bytes == 2 * (3 * 7) * 2 + 4 * (4 * 5) * 4 + (9 * 2 + 5) * (7 * 5) * 4


def test_rates_are_shares_of_what_was_measured():
    probe_seconds = {"matmul": 2 * 8192**3 / 500e12, "copy": 2 * 2**30 / 4000e9}  # 500 TFLOP/s, 4 TB/s
    row = rates(Work(flops=1e12, bytes=8e9), 0.01, probe_seconds)
    assert row == pytest.approx(
        {
            "tflops_per_s": 100,
            "matmul_tflops_per_s": 500,
            "share_of_matmul": 0.2,
            "gbytes_per_s": 800,
            "copy_gbytes_per_s": 4000,
            "share_of_copy": 0.2,
        }
    )


def test_the_product_is_in_the_dtype_of_the_steps(monkeypatch):
    x = torch.randn(4, 3)
    for dtype in (torch.float32, torch.bfloat16):
        assert {product().dtype for product in products(x.to(dtype), 8).values()} == {dtype}
    seen = set()
    monkeypatch.setattr(
        "apportion.bench.step.train_step",
        lambda run, *args, **more: seen.add(run.config.precision) or step.train_step(run, *args, **more),
    )
    (row, _) = bench_step(["token_choice"], d_in=8, d_sae=64, k=2, batch=16, rounds=2, dtype="bf16")
    assert seen == {"bf16"} and "tflops_per_s" not in row


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_the_table_on_a_card(dtype, capsys):
    sizes = ["--d-in", "256", "--d-sae", "4096", "--k", "16", "--batch", "512", "--rounds", "3"]
    assert main(["bench", "step", "--device", "cuda", "--dtype", dtype, "--json", *sizes]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert row["ratio"] > 1
        assert 0 < row["share_of_matmul"] < 1 and 0 < row["share_of_copy"] < 1
