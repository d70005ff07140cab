"""Ridge from sums agrees with scikit-learn on the rows themselves, and folds keep texts whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apportion.ops.ridge import choose_ridge, fit_ridge, fold_of, products, solve_ridge, squared_error

PENALTIES = (0.01, 1.0, 100.0, 1e4)


def rows(n=400, d=12, texts=40, noise=0.5):
    """Tokens of texts: one target a text, read from activations that are off centre."""
    generator = torch.Generator().manual_seed(0)
    text = torch.arange(n) % texts
    target = torch.randn(texts, generator=generator)[text]
    x = 3 + torch.randn(n, d, generator=generator)
    x[:, 0] += 2 * target + noise * torch.randn(n, generator=generator)
    return x, target


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_solution_is_scikit_learns(penalty):
    ridge = pytest.importorskip("sklearn.linear_model").Ridge(alpha=penalty)
    x, y = rows()
    want = ridge.fit(x.double().numpy(), y.double().numpy())
    # In two batches, whose sums add up.
    sums = products(x[:150], y[:150], 5) + products(x[150:], y[150:], 5)
    (fit,) = fit_ridge(sums.sum(0), (penalty,))
    np.testing.assert_allclose(fit.weight.numpy(), want.coef_, rtol=1e-8, atol=1e-10)
    assert float(fit.bias) == pytest.approx(want.intercept_, rel=1e-8)
    error = (y.double() - x.double() @ fit.weight - fit.bias).square().sum()
    assert float(squared_error(sums.sum(0), fit)) == pytest.approx(float(error), rel=1e-8)


def test_in_the_columns_own_units_it_is_the_solution_on_standardised_columns():
    ridge = pytest.importorskip("sklearn.linear_model").Ridge(alpha=30.0)
    x, y = rows()
    x = x.double() * torch.logspace(-3, 3, 12)
    x[:, 5] = 2.5  # says nothing
    spread = x.std(0, correction=0)
    spread[5] = 1.0
    want = ridge.fit((x / spread).numpy(), y.double().numpy())
    fit = solve_ridge(products(x, y, 1)[0], 30.0)
    np.testing.assert_allclose((fit.weight * spread).numpy(), want.coef_, rtol=1e-6, atol=1e-9)
    assert fit.weight[5] == 0
    assert float(fit.bias) == pytest.approx(want.intercept_, rel=1e-6)


def test_the_penalty_is_the_one_that_cross_validation_over_texts_chooses():
    linear = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    x, y = rows(n=60, texts=30, noise=3.0)
    folds = selection.PredefinedSplit(fold_of(y, 5).numpy())
    search = selection.GridSearchCV(
        linear.Ridge(), {"alpha": PENALTIES}, cv=folds, scoring=lambda e, a, b: -((e.predict(a) - b) ** 2).sum()
    )
    search.fit(x.double().numpy(), y.double().numpy())
    chosen = choose_ridge(products(x, y, 5), PENALTIES)
    assert chosen.penalty == search.best_params_["alpha"] and chosen.penalty > 0.01
    np.testing.assert_allclose(chosen.weight.numpy(), search.best_estimator_.coef_, rtol=1e-7)


def test_tokens_of_a_text_share_a_fold_and_folds_are_of_a_size():
    y = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    fold = fold_of(y, 5)
    assert torch.equal(fold, fold_of(y.double().float(), 5))
    assert torch.bincount(fold, minlength=5).min() > 850
    whole = fold_of(torch.arange(-500.0, 500.0), 5)
    assert torch.bincount(whole, minlength=5).min() > 120


def test_without_folds_to_compare_the_strongest_penalty_is_taken():
    x, y = rows(texts=1)
    assert choose_ridge(products(x, y, 5), PENALTIES).penalty == 1e4
