"""What one SAE does on held-out tokens: what it spends on each, which features fire and what they are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..activations.source import BLOCK_ROWS, Source
from ..code import Code
from ..errors import InvalidInput
from ..evaluate import reblock
from ..metrics import FeatureDensity, MetricBatch
from ..metrics.base import Moments, wide
from ..ops.encode_at import encode_at
from ..progress import Shown, bar
from ..sae import SAE
from ..trace import Dictionary

_ENTRIES_AT_ONCE = 1 << 24  # numbers in gathered directions


@dataclass(frozen=True, eq=False)
class Survey:
    """What an SAE does on the held-out tokens.

    Attributes:
        k_histogram: [k_max + 1] int64, tokens with k = 0, 1, … features.
        density: [d_sae] float64, the share of tokens that each feature fires on.
        gain: [d_sae] float64, by how much FVU would rise without it, all else as it is.
        code: of the first tokens, only what fires; on the CPU.
    """

    k_histogram: Tensor
    density: Tensor
    gain: Tensor
    code: Code


@torch.no_grad()
def survey(
    sae: SAE, source: Source, *, limit: int | None = None, keep: int = 131_072, progress: Shown = False
) -> Survey:
    """Read the held-out tokens once, a block at a time.

    Args:
        limit: read only the first so many.
        keep: tokens whose code is kept; memory holds that many times L0 entries.
        progress: show a bar on stderr.

    Raises:
        InvalidInput: there are no tokens.
    """
    density, gains, kept = FeatureDensity(sae.d_sae), _Gains(sae.dictionary()), _Kept(sae.d_sae, keep)
    histogram = torch.zeros(0, dtype=torch.int64)
    blocks = bar(
        reblock(source.blocks("evaluate", limit)),
        desc="survey",
        unit="block",
        total=None if limit is None else math.ceil(limit / BLOCK_ROWS),
        shown=progress,
    )
    for block in blocks:
        x = block.x.to(sae.device)
        code = sae.encode(x)
        x_hat = sae.decode(code)
        density.update(MetricBatch(x, x_hat, code))
        gains.add(x, x_hat, code)
        kept.add(code)
        fresh = torch.bincount(code.counts(), minlength=len(histogram)).cpu()
        fresh[: len(histogram)] += histogram
        histogram = fresh
    return Survey(histogram, density.density(), gains.result(), kept.code())


class _Gains:
    """Σ over tokens of ‖x − x̂ + z_f W_f‖² − ‖x − x̂‖², for each feature f, as a share of Σ‖x − x̄‖²."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._W_dec = dictionary.W_dec
        self._squares = dictionary.W_dec.square().sum(1)
        self._zeros = torch.zeros_like(self._squares), torch.zeros_like(dictionary.b_dec)
        self._sums = torch.zeros(len(self._squares), dtype=torch.float64)
        self._spread = Moments()

    def add(self, x: Tensor, x_hat: Tensor, code: Code) -> None:
        self._spread.update(x)
        residual = (wide(x) - wide(x_hat)).to(x.device, self._W_dec.dtype)
        step = max(_ENTRIES_AT_ONCE // self._W_dec.shape[1], 1)
        for rows, features, values in zip(
            code.rows.split(step), code.indices.split(step), code.values.split(step), strict=True
        ):
            along = encode_at(residual, self._W_dec, *self._zeros, rows, features)
            gain = wide(2 * values * along + values.square() * self._squares[features]).cpu()
            self._sums.index_add_(0, features.cpu(), gain)

    def result(self) -> Tensor:
        spread = float(self._spread.scatter)
        if spread <= 0:
            raise InvalidInput(
                f"the {self._spread.n} measured rows are all equal, so no gain is defined; measure more tokens"
            )
        return self._sums / spread


class _Kept:
    """The code of the first tokens."""

    def __init__(self, d_sae: int, most: int) -> None:
        self._d_sae, self._left = d_sae, most
        self._values, self._indices, self._counts = [torch.zeros(0)], [_NONE], [_NONE]

    def add(self, code: Code) -> None:
        tokens = min(code.n, self._left)
        self._left -= tokens
        entries = slice(0, int(code.offsets[tokens]))
        values = code.values[entries]
        fires = values > 0
        self._values.append(values[fires].float().cpu())
        self._indices.append(code.indices[entries][fires].cpu())
        self._counts.append(code.counts()[:tokens].cpu())

    def code(self) -> Code:
        counts = torch.cat(self._counts)
        offsets = torch.cat([_ZERO, counts.cumsum(0)])
        return Code(torch.cat(self._values), torch.cat(self._indices), offsets, self._d_sae, (len(counts),))


_NONE, _ZERO = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
