"""Is complexity linear in the activations? A ridge regression of scores on them, judged on texts left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, MissingExtra

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-4, 7))
"""λ that are tried, 0.01 to 1000 as published."""

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear prediction of scores.

    Attributes:
        weight: [d].
        bias: not penalised.
        penalty: λ beside the summed squared error.
        cv_rmse: root mean square error on the left-out texts of the cross-validation that chose λ.
    """

    weight: Floats
    bias: float
    penalty: float
    cv_rmse: float

    def __call__(self, inputs: NDArray[Any]) -> Floats:
        """[n] predicted scores of ``inputs [n, d]``."""
        return np.asarray(inputs.astype(np.float64) @ self.weight + self.bias)


@dataclass(frozen=True)
class ProbeReport:
    """How well predictions fit the scores of texts that the probe has not seen.

    Attributes:
        texts: how many.
        rmse: root mean square error, in units of the scores.
        pearson, spearman: correlations; NaN where one side is constant.
        r2: share of the scores' variance that is explained.
    """

    texts: int
    rmse: float
    pearson: float
    spearman: float
    r2: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def fit_probe(
    inputs: NDArray[Any],
    scores: Floats,
    rows: NDArray[Any] | None = None,
    text: Ints | None = None,
    penalties: tuple[float, ...] = PENALTIES,
) -> Probe:
    """Ridge regression with λ chosen by 5-fold cross-validation over texts.

    Args:
        inputs: [t, d], one per text, where it is predicted.
        scores: [t].
        rows, text: [m, d] and [m], what is fitted in place of ``inputs`` (every token, say) and whose text each
            row is of. All rows of a text are left out together.

    Raises:
        MissingExtra: scikit-learn is not installed.
        InvalidInput: fewer than 10 texts, scores that are not finite, or all equal.
    """
    try:
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import KFold
    except ImportError:
        raise MissingExtra("fitting a probe needs scikit-learn; install apportion[score]") from None
    _check(inputs, scores)
    wide = inputs.astype(np.float64)
    if rows is None or text is None:
        rows, text = wide, np.arange(len(wide))
    fitted = rows.astype(np.float64)
    errors = np.zeros(len(penalties))
    for kept, left in KFold(_FOLDS, shuffle=True, random_state=0).split(wide):
        own = np.isin(text, kept)
        for number, penalty in enumerate(penalties):
            ridge = Ridge(alpha=penalty).fit(fitted[own], scores[text[own]])
            errors[number] += np.square(ridge.predict(wide[left]) - scores[left]).sum()
    best = int(errors.argmin())
    ridge = Ridge(alpha=penalties[best]).fit(fitted, scores[text])
    rmse = float(np.sqrt(errors[best] / len(wide)))
    return Probe(np.asarray(ridge.coef_), float(ridge.intercept_), penalties[best], rmse)


def judge_probe(predicted: Floats, scores: Floats) -> ProbeReport:
    """How ``predicted [t]`` fits ``scores [t]`` of held-out texts. ``InvalidInput`` for fewer than two."""
    if len(scores) < 2:
        raise InvalidInput(f"{len(scores)} texts are held out, expected two at least; hold out a larger share")
    from scipy.stats import pearsonr, spearmanr

    error = float(np.square(predicted - scores).mean())
    constant = bool(np.ptp(predicted) == 0 or np.ptp(scores) == 0)
    return ProbeReport(
        texts=len(scores),
        rmse=float(np.sqrt(error)),
        pearson=float("nan") if constant else float(pearsonr(predicted, scores).statistic),
        spearman=float("nan") if constant else float(spearmanr(predicted, scores).statistic),
        r2=float(1 - error / scores.var()) if scores.var() > 0 else float("nan"),
    )


def _check(inputs: NDArray[Any], scores: Floats) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if len(scores) < 2 * _FOLDS or bad or len(inputs) != len(scores):
        raise InvalidInput(
            f"{len(inputs):,} training texts have {len(scores):,} scores, {bad:,} of them not finite; give "
            f"{2 * _FOLDS} or more texts with a finite score each"
        )
    if np.ptp(scores) == 0:
        raise InvalidInput(
            f"all {len(scores):,} training texts have the score {scores[0]:g}, so no probe can be fitted; choose "
            "another scorer or column"
        )
