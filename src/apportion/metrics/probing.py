"""What a few features tell of a document: k-sparse probes of its label, which no judge has a part in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..code import Code
from ..errors import InvalidInput, MissingExtra
from .adaptivity import DRAWS, Classes
from .base import wide
from .intervals import Interval, over_documents, redrawn_sums

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]


class DocumentMeans:
    """The mean value of every feature over each document's tokens, from codes that come in blocks.

    Memory grows with the pairs of a document and a feature that fires in it.

    Args:
        documents: how many there are; blocks name them by number.

    Attributes:
        tokens: [documents] int64, seen of each.
    """

    def __init__(self, documents: int, d_sae: int) -> None:
        self.tokens = torch.zeros(documents, dtype=torch.int64)
        self._d_sae = d_sae
        self._pairs, self._sums = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    def update(self, code: Code, document: Tensor) -> None:
        """Add a block: a code of n tokens and ``document [n]``."""
        document = document.cpu()
        self.tokens += torch.bincount(document, minlength=len(self.tokens))
        pairs = document[code.rows.cpu()] * self._d_sae + code.indices.cpu()
        self._fresh.append(_summed(pairs, wide(code.values).cpu()))
        self._waiting += len(self._fresh[-1][0])
        if self._waiting > len(self._pairs):  # so that merging costs a logarithm of the number of blocks
            self._merge()

    def result(self) -> Code:
        """The means, a row per document; of a document without a token nothing."""
        self._merge()
        rows, features = self._pairs // self._d_sae, self._pairs % self._d_sae
        return Code.from_pairs(rows, features, self._sums / self.tokens[rows], len(self.tokens), self._d_sae)

    def _merge(self) -> None:
        pairs, sums = zip((self._pairs, self._sums), *self._fresh, strict=True)
        self._pairs, self._sums = _summed(torch.cat(pairs), torch.cat(sums))
        self._fresh, self._waiting = [], 0


@dataclass(frozen=True)
class SparseProbe:
    """How well a few features tell the label of documents that the probe has not seen.

    Attributes:
        n_features: for each class.
        accuracy: share of the held-out documents whose label is told, with its interval over them.
        baseline: what naming the most common training label for all of them gets.
        classes: labels among the training documents.
        training: documents that features and probes were chosen on.
        chosen: the features of each class, the best first.
    """

    n_features: int
    accuracy: Interval
    baseline: float
    classes: int
    training: int
    chosen: dict[str, list[int]]


def sparse_probe(
    means: Code, labels: Classes, training: Bools, n_features: int, draws: int = DRAWS
) -> SparseProbe:
    """Tell a document's label from ``n_features`` features for each class.

    On training documents, each class takes the features whose mean over its documents differs most from that over
    the others (max mean difference, Gurnee et al. 2305.01610), and a logistic regression on these tells the class
    from the rest. A document gets the label of the class with the largest log-odds.

    Args:
        means: a row per document, as ``DocumentMeans`` gives them.
        labels: a word per document; those without are left out.
        training: [documents]; all others are held out.

    Raises:
        InvalidInput: fewer than two labels among the training documents, fewer than two held-out documents, or
            ``n_features`` out of range.
        MissingExtra: scikit-learn is not installed.
    """
    known = labels.of >= 0
    learned, asked = np.flatnonzero(known & training), np.flatnonzero(known & ~training)
    classes = np.unique(labels.of[learned])
    if len(classes) < 2 or len(asked) < 2 or not 1 <= n_features <= means.d_sae:
        raise InvalidInput(
            f"{len(learned)} training documents with {len(classes)} labels, {len(asked)} held-out ones and "
            f"{n_features} features make no probe; give two labels, two held-out documents and 1 to "
            f"{means.d_sae} features"
        )
    chosen = best_features(means, labels.of, learned, classes, n_features)
    odds = [
        _log_odds(_columns(means, own), labels.of == number, learned)[asked]
        for number, own in zip(classes, chosen, strict=True)
    ]
    told = classes[np.argmax(odds, axis=0)]
    right = (told == labels.of[asked]).astype(np.float64)
    redrawn = redrawn_sums(right[:, None], draws)[:, 0] / len(right)
    usual = classes[np.argmax([(labels.of[learned] == number).sum() for number in classes])]
    return SparseProbe(
        n_features,
        over_documents(float(right.mean()), redrawn.tolist(), len(right)),
        float((labels.of[asked] == usual).mean()),
        len(classes),
        len(learned),
        {labels.names[number]: own for number, own in zip(classes, chosen, strict=True)},
    )


def best_features(means: Code, label: Ints, learned: Ints, classes: Ints, n_features: int) -> list[list[int]]:
    """For each class, the features by falling |mean over its documents − mean over all others|.

    Args:
        label: [documents].
        learned: the documents to look at.
    """
    slot = np.full(means.n, -1)
    slot[learned] = np.searchsorted(classes, label[learned])
    own = torch.from_numpy(slot)[means.rows]
    seen = own >= 0
    sums = torch.zeros(len(classes) * means.d_sae, dtype=torch.float64)
    sums.index_add_(0, own[seen] * means.d_sae + means.indices[seen], means.values[seen].double())
    sums = sums.view(len(classes), means.d_sae)
    size = torch.from_numpy(np.bincount(slot[learned]))[:, None]
    apart = sums / size - (sums.sum(0) - sums) / (len(learned) - size)
    found: list[list[int]] = (
        apart.abs().sort(dim=1, descending=True, stable=True).indices[:, :n_features].tolist()
    )
    return found


def _columns(means: Code, features: Sequence[int]) -> NDArray[np.float64]:
    """[documents, len(features)] of the means."""
    place = torch.full((means.d_sae,), -1)
    place[torch.tensor(features)] = torch.arange(len(features))
    at = place[means.indices]
    columns = torch.zeros(means.n, len(features), dtype=torch.float64)
    columns[means.rows[at >= 0], at[at >= 0]] = means.values[at >= 0].double()
    return columns.numpy()


def _log_odds(inputs: NDArray[np.float64], is_class: Bools, learned: Ints) -> NDArray[Any]:
    """[documents] of a logistic regression fitted to the documents ``learned``, inputs standardised on them."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtra("a sparse probe needs scikit-learn; install apportion[score]") from None
    spread = inputs[learned].std(0)
    inputs = (inputs - inputs[learned].mean(0)) / np.where(spread > 0, spread, 1.0)
    fitted = LogisticRegression(max_iter=1000).fit(inputs[learned], is_class[learned])
    odds: NDArray[Any] = fitted.decision_function(inputs)
    return odds


def _summed(pairs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs, ascending, and the sum of the values of each."""
    different, slot = torch.unique(pairs, return_inverse=True)
    return different, values.new_zeros(len(different)).index_add_(0, slot, values)
