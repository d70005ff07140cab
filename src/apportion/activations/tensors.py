"""``TensorSource``: activations held in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidInput
from .keep import MEDIAN_ROWS, OUTLIERS, Outliers, beyond, check_outliers, norm_bound, policy
from .rows import SplitRows, SplitSource
from .source import Batch
from .splits import Bools, Ints, in_part

_DOCUMENT_ROWS = 64  # rows per document of a tensor that names none


class TensorSource(SplitSource):
    """Activations held in memory.

    Args:
        x: [n, d_in], any floating type; kept as it is, handed out as float32.
        document: [n] integers, the rows of a document being consecutive; None for documents of 64 rows.
        target: [n] a number per row.
        outliers: rows whose norm is above so many times the median of the first rows take no part; None keeps
            all.
        heldout, split_seed, buffer_rows: as for ``StoreSource``; a document's id is its number.

    Raises: ``InvalidInput`` for another shape, a NaN or a document whose rows are not consecutive,
    ``InvalidConfig`` for ``outliers`` not above 1.

    Attributes:
        documents: the id of every document, in order.
        n_train: rows in the training part.
    """

    def __init__(
        self,
        x: Tensor,
        document: Tensor | None = None,
        target: Tensor | None = None,
        *,
        outliers: float | None = OUTLIERS,
        heldout: float = 0.2,
        split_seed: int = 0,
        buffer_rows: int = 65_536,
    ) -> None:
        _check_tensor(x, document, target)
        self._heldout, self._seed = heldout, split_seed
        numbers = torch.arange(len(x)) // _DOCUMENT_ROWS if document is None else document.cpu().long()
        ids, counts = torch.unique_consecutive(numbers, return_counts=True)
        if len(ids.unique()) != len(ids):
            raise InvalidInput("the rows of a document are not consecutive; sort the rows by document")
        self.documents = [str(int(number)) for number in ids]
        sizes = counts.numpy()
        begins = np.concatenate([[0], sizes.cumsum()[:-1]]).astype(np.int64)
        self._rows = _TensorRows(x, numbers, target)
        bound = norm_bound(x.detach()[:MEDIAN_ROWS], check_outliers(outliers))
        marked = np.flatnonzero(beyond(x.detach(), bound))
        self._left_out: Outliers | None = None
        if outliers is not None and bound is not None and len(marked):
            first = int(np.isin(marked, begins).sum())
            self._left_out = Outliers(len(marked), first, len(x), outliers, bound)
        self._split = SplitRows(
            self._rows, self.documents, begins, sizes, marked, heldout, split_seed, buffer_rows
        )

    @property
    def d_in(self) -> int:
        return self._rows.x.shape[1]

    def remarks(self) -> list[str]:
        return [] if self._left_out is None else [self._left_out.sentence()]

    def describe(self) -> dict[str, Any]:
        out = self._left_out
        told = policy(outliers=out.outliers, bound=out.bound, left_out=out.rows) if out else None
        return ({"tokens": told} if told else {}) | {
            "kind": "tensor",
            "fingerprint": self._rows.fingerprint(),
            "d_in": self.d_in,
            "rows": len(self._rows.x),
            "documents": len(self.documents),
            "heldout": self._heldout,
            "split_seed": self._seed,
        }

    def in_training(self) -> Bools:
        """[documents] whether each belongs to the training part."""
        return in_part(self._split.parts, "train")


class _TensorRows:
    """Rows of tensors. ``position`` counts from the first row of the document."""

    def __init__(self, x: Tensor, document: Tensor, target: Tensor | None) -> None:
        self.x, self._document = x.detach(), document
        self._target = None if target is None else target.detach()
        _, inverse, counts = torch.unique_consecutive(document, return_inverse=True, return_counts=True)
        self._position = torch.arange(len(x)) - (counts.cumsum(0) - counts)[inverse]

    def fingerprint(self) -> str:
        """A hash of all rows, so that a training does not go on with other ones."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.x, self._document, self._target):
            if column is not None:
                digest.update(column.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def gather(self, rows: Ints) -> Batch:
        at = torch.from_numpy(rows)
        target = None if self._target is None else self._target[at.to(self._target.device)].float()
        x = self.x.index_select(0, at.to(self.x.device)).float()
        return Batch(x, self._document[at], self._position[at], target)


def _check_tensor(x: Tensor, document: Tensor | None, target: Tensor | None) -> None:
    if x.ndim != 2 or not x.is_floating_point() or len(x) == 0:
        raise InvalidInput(
            f"activations are a {x.dtype} tensor of shape {tuple(x.shape)}; expected floating [n, d_in] with "
            "n > 0: reshape them"
        )
    for name, column in (("document", document), ("target", target)):
        if column is not None and column.shape != x.shape[:1]:
            raise InvalidInput(
                f"{name} has shape {tuple(column.shape)}; expected ({len(x)},), one entry per row: reshape it"
            )
    bad = (~torch.isfinite(x).all(1)).nonzero()
    if len(bad):
        raise InvalidInput(f"row {int(bad[0])} of the activations is not finite; drop or repair such rows")
