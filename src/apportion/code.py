"""``Code``: the ragged sparse code of a batch, the result of every allocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InvalidInput
from .ops.positive import positive_in_columns, positive_in_rows
from .ops.spmm import offsets_of, rows_of


class Undo(NamedTuple):
    """What brings the reconstruction of tokens back that were transformed one by one: x̂ = gain · x̂' + shift.

    Attributes:
        gain: [n], at least 0.
        shift: [n], added to every coordinate.
    """

    gain: Tensor
    shift: Tensor

    def __call__(self, x_hat: Tensor) -> Tensor:
        """``x_hat [n, d_in]`` of the transformed tokens, brought back."""
        return x_hat * self.gain[:, None] + self.shift[:, None]


@dataclass(frozen=True, eq=False)
class Code:
    """Which features fire for each token, and how strongly, in CSR form.

    Row ``b`` owns entries ``offsets[b] : offsets[b + 1]``; features ascend within a row and occur once. A value
    may be zero (it can still carry a gradient), so counts look at values, not at entries.

    Attributes:
        values: [nnz], at least 0.
        indices: [nnz] int64, the feature of each entry.
        offsets: [n + 1] int64.
        d_sae: number of features.
        shape: the leading shape of the input, with product n; ``(n,)`` for ``x [n, d_in]``.
        undo: what brings the reconstruction back, where the SAE transforms tokens one by one; else None.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    d_sae: int
    shape: tuple[int, ...]
    undo: Undo | None = None

    @classmethod
    def from_pairs(cls, rows: Tensor, features: Tensor, values: Tensor, n: int, d_sae: int) -> Code:
        """Build from pairs in canonical order (by row, then by feature).

        Args:
            rows, features: [nnz] int64.
            values: [nnz].
        """
        return cls(values, features, offsets_of(rows, n), d_sae, (n,))

    @classmethod
    def from_dense(cls, z: Tensor) -> Code:
        """The entries of ``z [..., d_sae]`` that are not zero."""
        flat = z.reshape(-1, z.shape[-1])
        rows, features = flat.nonzero(as_tuple=True)
        code = cls.from_pairs(rows, features, flat[rows, features], len(flat), z.shape[-1])
        return code.reshape(z.shape[:-1])

    @property
    def n(self) -> int:
        """Number of tokens."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> Tensor:
        """[nnz] int64: the token of each entry."""
        return rows_of(self.offsets, len(self.indices))

    @property
    def matrix(self) -> Tensor | None:
        """[n, d_sae], if the code is held as one, zeros included; its entries need no list then."""
        return None

    @property
    def nnz(self) -> int:
        """The budget spent: number of values above zero."""
        return int((self.values > 0).sum())

    def firings(self) -> Tensor:
        """[d_sae] int64: the tokens that each feature fires on."""
        return torch.bincount(self.indices[self.values > 0], minlength=self.d_sae)

    def counts(self) -> Tensor:
        """Features per token: values above zero, in the input's leading shape, int64."""
        firing = torch.zeros(len(self.values) + 1, dtype=torch.int64, device=self.values.device)
        torch.cumsum(self.values > 0, 0, out=firing[1:])
        return firing[self.offsets].diff().reshape(self.shape)

    def to_dense(self) -> Tensor:
        """``[..., d_sae]``, zeros elsewhere; differentiable in ``values``."""
        dense = self.values.new_zeros(self.n, self.d_sae)
        return dense.index_put((self.rows, self.indices), self.values).reshape(*self.shape, self.d_sae)

    def restrict(self, features: Tensor | Sequence[int]) -> Code:
        """The same code with only the given features (numbers, or a mask [d_sae]); the numbering stays.

        Raises:
            InvalidInput: a feature is outside ``[0, d_sae)``.
        """
        chosen = torch.as_tensor(features, device=self.indices.device)
        if chosen.dtype == torch.bool and chosen.shape == (self.d_sae,):
            chosen = chosen.nonzero().squeeze(1)
        if chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise InvalidInput(f"features of type {chosen.dtype} are no numbers of features; pass integers")
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= self.d_sae):
            raise InvalidInput(
                f"features {int(chosen.min())} to {int(chosen.max())} are outside 0 to {self.d_sae - 1}; "
                "pass feature numbers of this SAE"
            )
        keep = torch.zeros(self.d_sae, dtype=torch.bool, device=self.indices.device)
        keep[chosen.long()] = True
        kept = keep[self.indices]
        smaller = Code.from_pairs(self.rows[kept], self.indices[kept], self.values[kept], self.n, self.d_sae)
        return replace(smaller, shape=self.shape, undo=self.undo)

    def edited(self, rows: Tensor, features: Tensor, values: Tensor) -> Code:
        """The same code with other values at some pairs, whether it has an entry there or not; 0 takes one out.

        Args:
            rows, features: [m] int64, each pair once, in any order; ``rows`` number the tokens from 0 to n - 1.
            values: [m], at least 0.
        """
        old, fresh = self.rows * self.d_sae + self.indices, rows * self.d_sae + features
        kept, added = ~torch.isin(old, fresh), values > 0
        pairs, order = torch.cat([old[kept], fresh[added]]).sort()
        merged = torch.cat([self.values[kept], values[added].to(self.values.dtype)])[order]
        code = Code.from_pairs(pairs // self.d_sae, pairs % self.d_sae, merged, self.n, self.d_sae)
        return replace(code, shape=self.shape, undo=self.undo)

    def clamped(self, feature: int, value: float) -> Code:
        """The same code with ``feature`` at ``value`` for every token; 0 takes it out. No other entry changes.

        So a token that did not have the feature has one more, and one that loses it has one less.
        """
        rows = torch.arange(self.n, device=self.offsets.device)
        return self.edited(rows, torch.full_like(rows, feature), self.values.new_full((self.n,), value))

    def in_bands(self, ends: Tensor) -> Code:
        """The same entries, each token's sorted into bands of features: leading shape ``(..., P)``.

        Args:
            ends: [P] int64, the first feature after each band; ascending, the last ``d_sae``.
        """
        band = torch.bucketize(self.indices, ends, right=True)
        rows = self.rows * len(ends) + band
        split = Code.from_pairs(rows, self.indices, self.values, self.n * len(ends), self.d_sae)
        return split.reshape((*self.shape, len(ends)))

    def reshape(self, shape: Sequence[int]) -> Code:
        """The same tokens under another leading shape of equal product."""
        if prod(shape) != self.n:
            raise InvalidInput(
                f"{self.n} tokens do not fill the shape {tuple(shape)}; its product must be {self.n}"
            )
        return replace(self, shape=tuple(shape))

    def with_values(self, values: Tensor) -> Code:
        """The same entries with other ``values [nnz]``."""
        return replace(self, values=values)

    def undone_by(self, undo: Undo | None) -> Code:
        """The same code of tokens whose reconstruction ``undo`` brings back."""
        return self if undo is None else replace(self, undo=undo)

    def detach(self) -> Code:
        """The same code, cut from the graph."""
        return self.with_values(self.values.detach())


class MatrixCode(Code):
    """The code of a rule that has not become sparse yet: every feature of every token, most values zero.

    It is a ``Code`` to whoever asks, and lists its entries only then.

    Args:
        z: [n, d_sae], at least 0.
        shape: see ``Code``.
    """

    def __init__(self, z: Tensor, shape: tuple[int, ...] | None = None) -> None:
        for name, value in (("values", z.reshape(-1)), ("d_sae", z.shape[1]), ("shape", shape or (len(z),))):
            object.__setattr__(self, name, value)

    @property
    def matrix(self) -> Tensor:
        return self.values.view(-1, self.d_sae)

    @property
    def indices(self) -> Tensor:
        features = torch.arange(self.d_sae, device=self.values.device)
        return features.expand(self.n, -1).reshape(-1)

    @property
    def offsets(self) -> Tensor:
        return torch.arange(self.n + 1, device=self.values.device) * self.d_sae

    @property
    def n(self) -> int:
        return len(self.values) // self.d_sae

    @property
    def nnz(self) -> int:
        return int(self.firings().sum())

    def firings(self) -> Tensor:
        return positive_in_columns(self.matrix)

    def to_dense(self) -> Tensor:
        return self.matrix.reshape(*self.shape, self.d_sae)

    def counts(self) -> Tensor:
        return positive_in_rows(self.matrix).reshape(self.shape)

    def reshape(self, shape: Sequence[int]) -> Code:
        if prod(shape) != self.n:
            return super().reshape(shape)  # which refuses
        return MatrixCode(self.matrix, tuple(shape))

    def with_values(self, values: Tensor) -> Code:
        return MatrixCode(values.view(-1, self.d_sae), self.shape)
