"""Many SAEs on one stream, each as if it were alone; and nothing outside is touched."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import apportion as ap

from .training_kit import config, records, saved, settings, source


def runs() -> dict[str, ap.RunConfig]:
    """Runs that share a workspace buffer, and runs that do not."""
    return {
        "a": config("token_choice", 4, dead_after=64),
        "b": config("mutual_choice", 2.5, d_sae=96, seed=1, dead_after=64),
        "c": config("drop_choice", 4),
        "d": config("mutual_choice", 4, lr={"kind": "constant", "value": 3e-3}),
    }


def test_each_of_many_is_bit_equal_to_itself_alone(tmp_path: Path, plugin: object, two_threads: None) -> None:
    together = ap.train(runs(), source(), tmp_path / "all", settings(12))
    for name, run in runs().items():
        ap.train({name: run}, source(), tmp_path / "alone", settings(12))
        assert records(tmp_path / "all" / name) == records(tmp_path / "alone" / name)
        assert saved(tmp_path / "all" / name) == saved(tmp_path / "alone" / name)
        (tmp_path / "alone").rename(tmp_path / f"alone-{name}")
    aux = [any("aux_k" in record["loss"] for record in records(tmp_path / "all" / name)) for name in runs()]
    assert sum(aux) >= 2, "the runs were too short for a feature to die"
    assert not torch.equal(together["a"].W_dec, together["d"].W_dec)


def test_their_order_does_not_matter(tmp_path: Path, plugin: object) -> None:
    ap.train(runs(), source(), tmp_path / "one", settings(4))
    ap.train(dict(reversed(runs().items())), source(), tmp_path / "two", settings(4))
    for name in runs():
        assert records(tmp_path / "one" / name) == records(tmp_path / "two" / name)
        assert saved(tmp_path / "one" / name)[0] == saved(tmp_path / "two" / name)[0]


def test_train_leaves_global_state_alone(tmp_path: Path, plugin: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the random state of the cards was reseeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    torch.rand(3)
    before = torch.get_rng_state()
    others = random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    flags = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    ap.train(runs(), source(), tmp_path, settings(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()) == others
    assert flags == (
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
    )


def test_results_do_not_depend_on_the_global_seed(tmp_path: Path, plugin: object) -> None:
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            ap.train({"c": config("drop_choice", 4)}, source(), tmp_path / str(seed), settings(10))
    assert records(tmp_path / "1" / "c") == records(tmp_path / "2" / "c")
    assert saved(tmp_path / "1" / "c") == saved(tmp_path / "2" / "c")


def test_the_seed_of_a_run_matters(tmp_path: Path) -> None:
    saes = ap.train({str(s): config(seed=s) for s in (0, 1)}, source(), tmp_path, settings(3))
    assert not torch.equal(saes["0"].W_dec, saes["1"].W_dec)
    assert torch.equal(saes["0"].W_dec, ap.load(tmp_path / "0").W_dec)
