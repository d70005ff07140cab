"""What is said of an SAE before its numbers are believed, from what it was saved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import apportion as ap
from apportion.code import Code
from apportion.firing import Firing
from apportion.recipes import find_recipe
from apportion.training import Run, caveats, train_step
from apportion.training.caveats import dead_in_training
from apportion.training.tally import Tally, fault_in

from ..conftest import make_sae
from .training_kit import D_IN, config, records, settings, source


def told(recipe: str, l0_train: float, k: float = 10.0, **more: Any) -> ap.SAE:
    """An SAE of a training that ended so."""
    sae = make_sae(find_recipe("token_choice").make(24, 96, k, 0).sae.allocator)
    run = find_recipe(recipe).make(24, 96, k, 0).model_dump(mode="json")
    sae.metadata = {
        "training": {"l0_train": l0_train, "config": run, **more},
        "calibration": {"k": k, "l0": k, "tokens": 5000, "short": 0},
    }
    return sae


def test_a_run_that_missed_its_k_says_so_wherever_it_is_read(tmp_path: Path) -> None:
    run = find_recipe("relu_l1").make(D_IN, 64, 4, 0)
    with pytest.warns(ap.errors.BudgetMissed) as seen:
        ap.train({"priced": run, "fixed": config()}, source(), tmp_path, settings(8))
    (warned,) = (str(one.message) for one in seen)
    assert caveats(ap.load(tmp_path / "priced"), "priced")[0] == warned
    assert warned not in caveats(ap.load(tmp_path / "fixed"), "fixed")


def test_it_is_judged_by_the_rule_that_trained_it() -> None:
    assert len(caveats(told("relu_l1", 10.3), "r")) == 1, "a rule that only a price holds to k"
    assert caveats(told("mutual_choice", 10.3), "r") == []
    lost = told("mutual_choice", 14.0)
    lost.metadata["training"]["config"]["sae"]["allocator"]["kind"] = "a rule of a plug-in that is not imported"
    assert "L0 = 14.0 and not at k = 10" in caveats(lost, "r")[0]


def test_another_k_that_was_asked_for_later_was_not_missed() -> None:
    sae = told("mutual_choice", 10.0)
    sae.metadata["calibration"] |= {"k": 5.0, "l0": 5.0}
    assert caveats(sae, "r") == []


@pytest.mark.parametrize("metadata", [{}, {"training": {}}, {"training": {"l0_train": 3.0}, "calibration": {}}])
def test_of_an_sae_that_was_not_trained_here_nothing_is_known(metadata: dict[str, Any]) -> None:
    sae = told("mutual_choice", 14.0)
    sae.metadata = metadata
    assert caveats(sae, "r") == [] and dead_in_training(metadata) == {}


def test_an_fvu_above_one_is_worse_than_the_mean() -> None:
    sae = told("mutual_choice", 10.0)
    (sentence,) = caveats(sae, "r", {"fvu": 1.205})
    assert "run 'r' has an FVU of 1.205 here, above 1" in sentence and caveats(sae, "r", {"fvu": 0.9}) == []
    sae.metadata["training"]["fvu_train"] = 5e15
    assert "ended its training at an FVU of 5e+15" in caveats(sae, "r")[0]


def test_dead_is_not_known_before_its_window_is_over() -> None:
    firing = Firing(3, dead_after=4)
    assert (firing.dead_share(), firing.never_fired()) == (None, None)
    found = []
    for feature in (0, 1, 1, 1, 1):
        firing.update(Code(torch.ones(1), torch.tensor([feature]), torch.tensor([0, 1]), 3, (1,)))
        found.append((firing.dead_share(), firing.never_fired()))
    assert [dead for dead, _ in found] == [None] * 3 + [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert [never for _, never in found] == [2 / 3] + [1 / 3] * 4


def test_a_training_shorter_than_the_window_says_null_in_its_log_and_in_its_sae(tmp_path: Path) -> None:
    runs = {"long": config(dead_after=192), "short": config(dead_after=100_000)}
    saes = ap.train(runs, source(), tmp_path, settings(9, log_every=1))
    assert [record["dead"] is None for record in records(tmp_path / "long")] == [True] * 2 + [False] * 7
    assert {record["dead"] for record in records(tmp_path / "short")} == {None}
    never = [record["never_fired"] for record in records(tmp_path / "short")]
    assert never == sorted(never, reverse=True) and never[0] > 0
    found = dead_in_training(saes["short"].metadata)
    assert found == {"dead": None, "never_fired": never[-1]}
    old = {"training": {"dead": 0.0, "tokens": 576, "config": {"dead_after": 100_000}}}
    assert dead_in_training(old) == {"dead": None, "never_fired": None}, "what older versions wrote as 0"


def test_a_batch_of_equal_rows_has_no_fvu() -> None:
    run, clock = Run(config(), torch.zeros(D_IN)), ap.Clock(0, 2)
    record = Tally().record(run, train_step(run, torch.ones(8, D_IN), clock), clock)
    assert record["fvu"] is None and fault_in(record) is None, "no number, and no sign that it diverges"


def test_an_sae_that_spends_another_k_on_what_it_is_measured_on_says_so():
    sae = ap.SAE(ap.recipe("topk").make(8, 32, 4, 0).sae)
    near, far = ({"l0": l0, "l0_se": 0.1} for l0 in (4.25, 4.3))
    assert caveats(sae, "run", near) == []
    assert caveats(sae, "run", far) == ["run 'run' spends 4.3 ± 0.1 features per token here and not k = 4"]
    assert caveats(sae, "run", {"l0": 9.0, "l0_se": None}) == []  # of one document nobody knows
