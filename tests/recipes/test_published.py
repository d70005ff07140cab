"""The settings of the papers' own experiments, as ``apportion train --paper`` takes them."""

from __future__ import annotations

import pytest

import apportion as ap
from apportion import RunConfig
from apportion.recipes import recipe_names
from apportion.schedules import Linear

PAPERS = [(name, paper) for name in recipe_names() for paper in ap.recipe(name).papers]


@pytest.mark.parametrize(("name", "paper"), PAPERS)
def test_published_settings_make_a_run_and_say_where_they_differ(name: str, paper: str) -> None:
    published = ap.recipe(name).published(paper)
    run = published.make(16, published.d_sae, published.k or 32, 3)
    assert (run.sae.d_in, run.sae.d_sae, run.seed) == (16, published.d_sae, 3)
    assert run.sae.allocator.mean_k == (published.k or 32)
    steps = published.train.n_steps
    rates = [run.lr(ap.Clock(step=step, n_steps=steps)) for step in (0, 5_000 if steps > 10_000 else steps // 2)]
    assert rates[0] < rates[1], "every one of them warms up"
    assert published.notes


def test_the_published_jump_relu_has_no_momentum_and_narrow_windows() -> None:
    run = ap.recipe("jump_relu").published("gemma").make(16, 64, 8, 0)
    rule = run.sae.allocator.model_dump()
    assert (run.betas, rule["theta"], rule["width"], rule["pace"]) == ((0.0, 0.999), 1e-3, 1e-3, 1.0)


def test_the_board_games_share_a_stream_and_anneal_after_ten_thousand_steps() -> None:
    published = {name: ap.recipe(name).published("board_games") for name in ("relu_l1", "p_anneal", "gated")}
    runs = {name: paper.make(16, 64, 8, 0) for name, paper in published.items()}
    assert {paper.train.n_steps for paper in published.values()} == {36_621}
    assert [run.betas[0] for run in runs.values()] == [0.9, 0.9, 0.0]
    p = RunConfig.parse(runs["p_anneal"].model_dump(mode="json"), "p").sae.allocator.model_dump()["p"]
    schedule = Linear(**{key: value for key, value in p.items() if key != "kind"})
    at = [schedule(ap.Clock(step=step, n_steps=36_621)) for step in (10_000, 23_310, 36_620)]
    assert at == pytest.approx([1.0, 0.6, 0.2], abs=1e-3)


def test_the_published_matryoshka_has_its_five_widths() -> None:
    published = ap.recipe("matryoshka").published("gemma")
    nested = published.make(16, published.d_sae, 32, 0).objectives[0].model_dump()
    widths = [round(share * published.d_sae) for share in nested["prefixes"]]
    assert widths == [2048, 6144, 14_336, 30_720, 65_536]
