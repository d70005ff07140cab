"""The probe finds what is linear, chooses λ on training texts, and is judged by the usual formulas."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.complexity.probe import fit_probe, judge_probe
from apportion.errors import InvalidInput

pytest.importorskip("sklearn")


def texts(n=200, d=20, noise=0.3, seed=0):
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((n, d)).astype(np.float32) + 2
    scores = inputs[:, 0] - 0.5 * inputs[:, 1] + 1 + noise * random.standard_normal(n)
    return inputs, scores


def test_a_linear_score_is_predicted_on_texts_left_out():
    inputs, scores = texts()
    probe = fit_probe(inputs[:150], scores[:150])
    report = judge_probe(probe(inputs[150:]), scores[150:])
    assert report.texts == 50 and report.rmse == pytest.approx(0.3, rel=0.3)
    assert probe.cv_rmse == pytest.approx(0.3, rel=0.3)
    assert min(report.pearson, report.spearman) > 0.9 and report.r2 > 0.85
    assert probe.weight[:2] == pytest.approx([1, -0.5], abs=0.1)


def test_noise_is_penalised_more_and_predicted_badly():
    inputs, scores = texts(n=60, d=40)
    wrong = np.random.default_rng(1).permutation(scores)
    probe = fit_probe(inputs[:40], wrong[:40])
    assert probe.penalty > fit_probe(inputs[:40], scores[:40]).penalty
    assert judge_probe(probe(inputs[40:]), wrong[40:]).r2 < 0.3


def test_every_token_may_be_fitted_and_texts_are_left_out_whole():
    inputs, scores = texts(n=60)
    text = np.repeat(np.arange(60), 8)
    # Noise that all tokens of a text share would let a token be read off its neighbours.
    rows = inputs[text] + np.random.default_rng(2).standard_normal((480, 20))
    pure = np.random.default_rng(3).standard_normal(60)
    assert fit_probe(inputs, scores, rows, text).cv_rmse < 0.8 * scores.std()
    assert fit_probe(inputs, pure, rows, text).cv_rmse > 0.9 * pure.std()


def test_the_report_is_the_formulas():
    a, b = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0])
    report = judge_probe(a, b)
    assert report.rmse == pytest.approx(np.sqrt(3 / 4))
    assert report.pearson == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert report.spearman == pytest.approx(0.8) and report.r2 == pytest.approx(1 - 0.75 / 1.25)
    assert np.isnan(judge_probe(np.ones(3), b[:3]).spearman)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: np.where(np.arange(40) < 3, np.nan, s), r"40 training texts have 40 scores, 3 of them not"),
        (lambda s: np.full(40, 2.5), r"all 40 training texts have the score 2.5, so no probe can be fitted"),
        (lambda s: s[:30], r"40 training texts have 30 scores"),
    ],
)
def test_unusable_scores_are_counted(spoil, words):
    inputs, scores = texts(n=40)
    with pytest.raises(InvalidInput, match=words):
        fit_probe(inputs, spoil(scores))
    with pytest.raises(InvalidInput, match="1 texts are held out, expected two at least"):
        judge_probe(scores[:1], scores[:1])
