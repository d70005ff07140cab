"""One activation per text: its mean or its last; and some of every text's tokens."""

from __future__ import annotations

import torch
from torch import Tensor


class TextPools:
    """What probes of texts are fitted to, collected in one pass over the rows.

    Args:
        n_texts: texts, by whose number rows come.
        d_in: width of a row.
        every: each so-many-th row is kept among ``tokens``.
    """

    def __init__(self, n_texts: int, d_in: int, every: int = 1) -> None:
        self._sum = torch.zeros(n_texts, d_in, dtype=torch.float64)
        self._last = torch.zeros(n_texts, d_in)
        self._every, self._seen = every, 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self.counts = torch.zeros(n_texts, dtype=torch.int64)

    def add(self, x: Tensor, text: Tensor) -> None:
        """Take in rows ``x [n, d_in]`` of the texts ``text [n]`` (-1: of none); those of a text come in order."""
        x, text = x[text >= 0].float().cpu(), text[text >= 0].cpu()
        self._sum.index_add_(0, text, x.double())
        self.counts += torch.bincount(text, minlength=len(self.counts))
        ends = torch.ones_like(text, dtype=torch.bool)
        ends[:-1] = text[1:] != text[:-1]
        self._last[text[ends]] = x[ends]
        first = -self._seen % self._every
        self._kept.append((x[first :: self._every], text[first :: self._every]))
        self._seen += len(x)

    @property
    def mean(self) -> Tensor:
        """[n_texts, d_in] float32, zeros for a text without rows."""
        return (self._sum / self.counts.clamp(min=1)[:, None]).float()

    @property
    def last(self) -> Tensor:
        """[n_texts, d_in] float32, zeros for a text without rows."""
        return self._last

    @property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """[m, d_in] rows, each ``every``-th, and [m] their texts."""
        rows, texts = zip(*self._kept, strict=True)
        return torch.cat(rows), torch.cat(texts)
