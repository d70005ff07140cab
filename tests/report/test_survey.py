"""What is measured of one SAE, against the same thing done without any cleverness."""

from __future__ import annotations

import pytest
import torch

import apportion as ap
from apportion.allocators import TokenChoiceConfig
from apportion.errors import InvalidInput
from apportion.metrics.base import Moments
from apportion.report.survey import survey

from ..conftest import inputs, make_sae

CONFIG = TokenChoiceConfig.parse({"kind": "token_choice", "budget": {"kind": "constant", "k": 4}}, "test")


@pytest.fixture(scope="module")
def rows() -> ap.TensorSource:
    return ap.TensorSource(inputs(9000), heldout=0.5)


def whole(source: ap.TensorSource) -> torch.Tensor:
    return torch.cat([block.x for block in source.blocks("evaluate")])


def test_a_feature_s_gain_is_what_fvu_rises_by_without_it(rows: ap.TensorSource) -> None:
    sae, x = make_sae(CONFIG), whole(rows)
    found = survey(sae, rows, keep=0)
    code, spread = sae.encode(x).detach(), Moments()
    spread.update(x)

    def fvu(features: torch.Tensor) -> float:
        error = (x - sae.decode(code.restrict(features)).detach()).double().square().sum()
        return float(error / spread.scatter)

    everything = torch.ones(sae.d_sae, dtype=torch.bool)
    for feature in (0, 17, 95):
        without = everything.clone()
        without[feature] = False
        assert float(found.gain[feature]) == pytest.approx(fvu(without) - fvu(everything), abs=1e-8)


def test_density_and_k_are_those_of_the_whole_part(rows: ap.TensorSource) -> None:
    sae, x = make_sae(CONFIG), whole(rows)
    found, dense = survey(sae, rows, keep=0), sae.encode(x).to_dense() > 0
    assert torch.equal(found.density, dense.double().mean(0))
    assert torch.equal(found.k_histogram, torch.bincount(dense.sum(1)))


@pytest.mark.parametrize("keep", [0, 1, 1024, 1500, 10**6])
def test_the_code_of_the_first_tokens_is_kept(rows: ap.TensorSource, keep: int) -> None:
    sae, x = make_sae(CONFIG), whole(rows)
    kept = survey(sae, rows, keep=keep).code
    assert kept.n == min(keep, len(x)) and bool((kept.values > 0).all())
    torch.testing.assert_close(kept.to_dense(), sae.encode(x[:keep]).to_dense())


def test_limit_ends_it_and_nothing_to_read_is_refused(rows: ap.TensorSource) -> None:
    assert int(survey(make_sae(CONFIG), rows, limit=1100).k_histogram.sum()) == 1100
    with pytest.raises(InvalidInput, match="0 tokens were measured"):
        survey(make_sae(CONFIG), rows, limit=0)
