"""What each rule promises beyond the laws that all keep."""

from __future__ import annotations

import pytest
import torch

from apportion.allocators import MutualChoiceConfig, Threshold, ThresholdConfig, TokenChoice, TokenChoiceConfig
from apportion.clock import END
from apportion.errors import InvalidInput
from apportion.firing import Firing
from apportion.world import World

from ..conftest import inputs, make_sae


def test_token_choice_is_topk_of_every_row():
    sae, x = make_sae(TokenChoiceConfig.for_k(5)), inputs(60)
    a = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc)
    want = torch.zeros_like(a).scatter_(1, a.topk(5).indices, a.topk(5).values)
    torch.testing.assert_close(sae.trace(x).code.to_dense(), want)


def test_token_choice_takes_what_is_positive_when_k_is_more():
    sae, x = make_sae(TokenChoiceConfig.for_k(96)), inputs(20)
    positive = ((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc) > 0
    assert torch.equal(sae.trace(x).code.counts(), positive.sum(1))


def test_mutual_choice_is_topk_of_the_batch():
    sae, x = make_sae(MutualChoiceConfig.for_k(5)), inputs(60)
    a = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc)
    cut = a.flatten().topk(300).values[-1]
    torch.testing.assert_close(sae.trace(x).code.to_dense(), a * (a >= cut))
    assert sae.trace(x).code.counts().float().std() > 1


@pytest.mark.parametrize(("k", "n", "budget"), [(2.5, 10, 25), (0.3, 10, 3), (0.05, 10, 0), (0.1, 30, 3)])
def test_mutual_choice_spends_a_real_k_and_never_more(k, n, budget):
    sae = make_sae(MutualChoiceConfig.for_k(k))
    assert sae.trace(inputs(n)).code.nnz == budget


def test_a_process_that_chose_nothing_is_asked_too_and_counts_for_nothing():
    class Other(World):
        """Another process, whose smallest choice is 0.75."""

        def sum(self, tensor):
            return tensor + torch.tensor([0.75, 1.0])

    sae = make_sae(MutualChoiceConfig.for_k(0.05))
    nothing = sae.trace(inputs(10))
    assert nothing.code.nnz == 0
    sae.allocator.observe(nothing, sae.dictionary(), Firing(96))
    assert int(sae.allocator.seen) == 0
    sae.allocator.observe(nothing, sae.dictionary(), Firing(96), Other(0, 2))
    assert float(sae.allocator.theta) == 0.75 and int(sae.allocator.seen) == 1


def test_mutual_choice_remembers_its_smallest_choice():
    sae = make_sae(MutualChoiceConfig(k=5, memory=0.9))
    running = None
    for seed in range(5):
        trace = sae.trace(inputs(60, seed=seed))
        sae.allocator.observe(trace, sae.dictionary(), Firing(96))
        smallest = float(trace.code.values.detach().min())
        running = smallest if running is None else 0.9 * running + 0.1 * smallest
    assert float(sae.allocator.theta) == pytest.approx(running, rel=1e-6)
    assert float(sae.freeze().allocator.theta) == float(sae.allocator.theta)


def test_an_empty_step_does_not_move_the_threshold():
    sae = make_sae(MutualChoiceConfig.for_k(5))
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e6)
    sae.allocator.observe(sae.trace(inputs(9)), sae.dictionary(), Firing(96))
    assert int(sae.allocator.seen) == 0 and float(sae.allocator.theta) == 0


@pytest.mark.parametrize("k", [0.5, 3, 17, 40])
def test_the_fitted_threshold_is_exact(k):
    sae = make_sae(ThresholdConfig.for_k(k))
    blocks = [inputs(100, seed=s) * (1 + 3 * (s == 2)) for s in range(6)]  # one block has most of the large ones
    fitted, calibration = sae.calibrate(lambda: iter(blocks), k)
    a = torch.cat([(x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc for x in blocks])
    assert int((a > fitted.allocator.theta).sum()) == round(600 * k)
    assert calibration.l0 == pytest.approx(k, abs=1e-3 * k) and calibration.tokens == 600


def test_more_than_there_is_gives_everything_and_says_so():
    sae = make_sae(ThresholdConfig.for_k(90))
    fitted, calibration = sae.calibrate(lambda: iter([inputs(50)]), 90)
    assert float(fitted.allocator.theta) == 0.0
    assert calibration.l0 < 90 and calibration.short == 50


def test_token_choice_reports_short_tokens():
    sae = make_sae(TokenChoiceConfig.for_k(60))
    x = inputs(50)
    positive = (((x - sae.b_dec) @ sae.encoder.weight.T + sae.b_enc) > 0).sum(1)
    _, calibration = sae.calibrate(lambda: iter([x]), 60)
    assert calibration.short == int((positive < 60).sum()) > 0


def test_no_tokens_to_calibrate_on():
    with pytest.raises(InvalidInput, match="no tokens"):
        make_sae(ThresholdConfig.for_k(3)).calibrate(lambda: iter([]), 3)


def test_calibrating_gives_an_inference_rule_and_needs_a_k_that_fits():
    sae = make_sae(MutualChoiceConfig.for_k(3))
    fitted, calibration = sae.calibrate(lambda: iter([inputs(400)]), 3)
    assert isinstance(fitted.allocator, Threshold) and calibration.l0 == pytest.approx(3, abs=3e-3)
    for k in (0, -1, 97):
        with pytest.raises(InvalidInput, match="d_sae = 96"):
            sae.calibrate(lambda: iter([inputs(400)]), k)


def test_inference_forms():
    assert isinstance(make_sae(MutualChoiceConfig.for_k(3)).freeze().allocator, Threshold)
    assert isinstance(make_sae(TokenChoiceConfig.for_k(3)).freeze().allocator, TokenChoice)


def test_constant_budget_solves_to_the_nearest_whole_number():
    budget = make_sae(TokenChoiceConfig.for_k(3)).allocator.budget
    sae, x = make_sae(TokenChoiceConfig.for_k(3)), inputs(4)
    assert budget(sae.trace(x).pre, x, END).tolist() == [3.0] * 4
    assert budget.solve(lambda: iter([]), 6.6)(sae.trace(x).pre, x, END).tolist() == [7.0] * 4
