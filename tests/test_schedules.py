"""Schedules in steps, and runs too short for them."""

from __future__ import annotations

import pytest
import torch

import apportion as ap
from apportion.allocators import SoftTopKConfig
from apportion.budgets import LearnedConfig
from apportion.clock import Clock
from apportion.errors import InvalidConfig
from apportion.schedules import Jump, Linear, LinearSteps


def test_linear_steps_ends_after_its_steps_whatever_the_run():
    schedule = LinearSteps(start=0.99, end=1e-4, steps=20)
    for n_steps in (21, 50, 1000):
        values = [schedule(Clock(step, n_steps)) for step in (0, 10, 20, n_steps)]
        assert values == pytest.approx([0.99, 0.49505, 1e-4, 1e-4])
    assert schedule.n_steps == 21 and Linear(start=0, end=1).n_steps == 1


def test_a_jump_has_happened_at_its_share_of_the_run():
    schedule = Jump(start=1.0, end=0.05, at=0.9)
    assert [schedule(Clock(step, 10)) for step in (0, 8, 9, 10)] == [1.0, 1.0, 0.05, 0.05]


def soft_run(**changes):
    budget = LearnedConfig(k=4, **changes.pop("budget", {}))
    allocator = SoftTopKConfig(budget=budget, **changes)
    return ap.RunConfig(sae=ap.SAEConfig(d_in=8, d_sae=32, allocator=allocator))


def test_a_number_is_that_number_always():
    assert soft_run(alpha=0.02).sae.allocator.alpha(Clock(7, 9)) == 0.02
    with pytest.raises(InvalidConfig):
        SoftTopKConfig.parse({"kind": "soft_top_k", "budget": {"kind": "learned", "k": 4}, "alpha": True}, "x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"alpha": Linear(start=1, end=0, until=0.5)},
            "alpha is 0 at step 8; give a schedule that stays above",
        ),
        ({"alpha": -1.0}, "alpha is -1 at step 0"),
        ({"alpha": float("nan")}, "alpha is nan at step 0"),
        (
            {"alpha": LinearSteps(start=1, end=0.1, steps=12), "hard": 4},
            "alpha takes 13 steps and the hard stage 4, but the run has 16; train for 17 steps",
        ),
        ({"hard": 17}, "the hard stage 17, but the run has 16; train for 18 steps"),
    ],
)
def test_stages_that_do_not_fit_are_refused_at_the_start(changes, words, tmp_path):
    source = ap.TensorSource(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))
    settings = ap.TrainConfig(n_tokens=256, batch_size=16)
    with pytest.raises(InvalidConfig, match=words):
        ap.train({"r": soft_run(**changes)}, source, tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"alpha": LinearSteps(start=1, end=0.1, steps=100)}, r"r\.sae\.allocator\.alpha takes 101 steps"),
        (
            {"budget": {"relaxed": LinearSteps(start=1, end=0, steps=17)}},
            r"r\.sae\.allocator\.budget\.relaxed takes 18 steps",
        ),
    ],
)
def test_a_run_too_short_for_a_schedule_is_refused_at_the_start(changes, where, tmp_path):
    source = ap.TensorSource(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))
    settings = ap.TrainConfig(n_tokens=256, batch_size=16)
    with pytest.raises(InvalidConfig, match=where + " and the run has 16; train for"):
        ap.train({"r": soft_run(**changes)}, source, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*"))
