"""Does a larger affinity mean a larger gain? The monotonic importance heuristic (arXiv 2411.02124), measured."""

from __future__ import annotations

import torch
from torch import Tensor

from ..code import Code
from ..ops.above import Pairs
from ..ops.select import rank_in_rows
from .base import Json, Metric, MetricBatch, without_bias

_ENTRIES_AT_ONCE = 1 << 22  # of gathered directions


class MonotonicImportance(Metric):
    """Rank correlation, within tokens, of a feature's value with what it adds to the reconstruction.

    The gain of a feature is how much the squared error of its token grows without it: taken from the full code
    (``importance_alone``), or when features are added from the largest value down (``importance_in_order``; this
    one flatters the heuristic, for what comes first has more left to explain). Each is the mean over tokens of
    Spearman's coefficient (ties by feature number); ``importance_tokens`` counts the tokens, those with three
    features or more.

    Args:
        W_dec: [d_sae, d_in] directions.
        b_dec: [d_in].
        most: tokens of each block that are looked at, its first; None for all.
    """

    def __init__(self, W_dec: Tensor, b_dec: Tensor, most: int | None = None) -> None:
        self._W_dec, self._b_dec, self._most = W_dec.detach(), b_dec.detach(), most
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._tokens = 0

    def update(self, batch: MetricBatch) -> None:
        step = max(_ENTRIES_AT_ONCE // max(self._W_dec.shape[1] * int(batch.code.counts().max()), 1), 1)
        offsets, target = batch.code.offsets, without_bias(batch, self._b_dec.to(self._W_dec.dtype))
        undo = batch.code.undo
        values = batch.code.values if undo is None else batch.code.values * undo.gain[batch.code.rows]
        last = batch.code.n if self._most is None else min(self._most, batch.code.n)
        for low in range(0, last, step):
            high = min(low + step, last)
            part = slice(int(offsets[low]), int(offsets[high]))
            code = batch.code
            few = Code(
                values[part],
                code.indices[part],
                offsets[low : high + 1] - offsets[low],
                code.d_sae,
                (high - low,),
            )
            self._add(few, target[low:high])

    def result(self) -> dict[str, Json]:
        alone, in_order = (float(total) / self._tokens if self._tokens else None for total in self._sums)
        return {"importance_alone": alone, "importance_in_order": in_order, "importance_tokens": self._tokens}

    def _add(self, code: Code, target: Tensor) -> None:
        pairs = Pairs(code.rows, code.indices)
        place = rank_in_rows(pairs, code.values, code.n)
        gains = gains_of(code, place, target, self._W_dec)
        counts = code.offsets.diff().double()
        enough = counts >= 3
        self._tokens += int(enough.sum())
        for number, gain in enumerate(gains):
            apart = (rank_in_rows(pairs, gain, code.n) - place).double().square()
            total = apart.new_zeros(code.n).index_add_(0, pairs.rows, apart)
            rho = 1 - 6 * total / (counts * (counts.square() - 1))
            self._sums[number] += rho[enough].sum().cpu()


def gains_of(code: Code, place: Tensor, target: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """[nnz] each: what every entry takes off its token's squared error, left out of the full code, and in order.

    Args:
        code: n tokens.
        place: [nnz] int64, each entry's place in its token's order, from 0.
        target: [n, d_in], what the directions are to sum to.
    """
    width = int(code.counts().max()) if code.n else 0
    values = target.new_zeros(code.n, width)
    features = torch.zeros(code.n, width, dtype=torch.int64, device=target.device)
    rows = code.rows
    values[rows, place], features[rows, place] = code.values.to(target.dtype), code.indices
    steps = W_dec[features] * values[..., None]  # [n, width, d_in], zero past the end of a token's code
    before = target[:, None] - steps.cumsum(1) + steps
    after = (target - steps.sum(1))[:, None]
    in_order = (2 * before - steps).mul(steps).sum(-1)
    alone = (2 * after + steps).mul(steps).sum(-1)
    return alone[rows, place], in_order[rows, place]
