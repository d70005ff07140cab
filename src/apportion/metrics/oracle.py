"""Is each token's k the right one? A method's error beside that of the best k, and of one k for all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInput
from ..ops.waterfill import Steps, best_k, buy, hull_steps, prefix_errors, thinned
from .base import Json, Metric, MetricBatch, Moments, need_tokens, unexplained, wide, without_bias
from .correlation import spearman

STEPS = 1 << 20
"""Steps of error curves that are held; more of them are thinned, and the loss is bounded."""
SAMPLE = 1 << 14
"""Tokens whose errors are kept until the price is known."""

_ROUNDING = 1e-9
"""A smaller share of an error than this is no gain."""


class Oracle(Metric):
    """Allocation efficiency: of what the best k per token gains over one k for all, the share that a method gets.

    Encoder, decoder and each token's order of features (``MetricBatch.order``) stay as they are; only how many
    features a token gets varies, from 0 to k_max, the width of the order. At the method's own L0:

    - ``fvu_uniform``: one k for all tokens, between its two whole neighbours interpolated; a token with fewer
      positive affinities takes those, and the others the rest.
    - ``fvu_oracle``: the best split of at most that budget. Exact at the budgets that a price attains, between
      two of them interpolated, and no split does better. ``fvu_oracle_slack`` bounds by how much it is too high
      because curves were thinned; 0 up to 2^20 steps of them.
    - ``short_of_uniform``: the share of tokens with fewer positive affinities than that one k (the larger
      neighbour). Where these are most, no k for all can be spent: a rule that lets everything positive fire is
      its own ``fvu_uniform``.
    - ``allocation_efficiency`` = (``fvu_uniform`` - FVU) / (``fvu_uniform`` - ``fvu_oracle``); ``None`` where one
      k for all is the best, where most tokens fall short of it, and where L0 is more than one k of k_max gives.
    - ``fvu_in_order``: the method's k per token, its features taken from the order. Where no code has more than
      k_max, another number than FVU means that codes are no prefixes, and the efficiency is not about k alone.
    - ``oracle_price``: what one more feature per token would take off ``fvu_oracle``.
    - ``oracle_l0``, ``oracle_l0_std``, ``oracle_l0_min``, ``oracle_l0_max``: features per token of the best
      split; ``k_correlation``: Spearman's, over tokens, of the method's k with it. These are over
      ``oracle_tokens`` tokens, evenly spaced; all, if there are no more than 2^14.
    - ``gain_correlation``: within the method's code, Spearman's of a feature's place in the order (the first the
      largest) with what it adds to the reconstruction there; mean over the tokens with three features or more.
    - ``k_max``; ``at_k_max``: the share of those ``oracle_tokens`` that the oracle gives k_max, so that a larger
      one could be better; ``beyond_k_max``: the share of tokens whose code has more, to the oracle's loss.

    Memory does not grow with the number of tokens.

    Args:
        W_dec: [d_sae, d_in] directions.
        b_dec: [d_in].
    """

    def __init__(self, W_dec: Tensor, b_dec: Tensor) -> None:
        self._W_dec, self._b_dec = W_dec.detach(), b_dec.detach()
        self._spread = Moments()
        self._error = self._in_order = 0.0
        self._spent = self._beyond = 0
        # [k_max + 1]: the error of all tokens with k features each, and the features that this spends.
        self._errors = torch.zeros(0, dtype=torch.float64)
        self._spends = torch.zeros(0, dtype=torch.int64)
        self._curve = _Curve()
        self._sample = _Sample()
        self._correlations = torch.zeros((), dtype=torch.float64)
        self._correlated = 0

    def update(self, batch: MetricBatch) -> None:
        if batch.order is None:
            raise InvalidInput("the block has no order of features; pass what SAE.order gives for its tokens")
        if batch.code.n == 0:
            return
        features, values = batch.order
        target = without_bias(batch, self._b_dec.to(self._W_dec.dtype))
        if (undo := batch.code.undo) is not None:
            values = values * undo.gain[:, None]
        errors = wide(prefix_errors(target, self._W_dec, features, values)).cpu()
        counts = batch.code.counts().reshape(-1).cpu()
        within = counts.clamp(max=features.shape[1])
        self._spread.update(batch.x)
        self._error += float((wide(batch.x) - wide(batch.x_hat)).square().sum())
        self._in_order += float(errors.gather(1, within[:, None]).sum())
        self._spent += int(counts.sum())
        self._beyond += int((counts > within).sum())
        self._add(errors.sum(0), torch.cat([counts.new_zeros(1), (values > 0).sum(0).cpu().cumsum(0)]))
        self._curve.add(hull_steps(errors))
        self._sample.add(errors, counts)
        rho = gain_correlations(errors, within)
        self._correlations += rho.sum()
        self._correlated += len(rho)

    def result(self) -> dict[str, Json]:
        need_tokens(self._spread.n)
        k = self._uniform_k()
        uniform = None if k is None else self._uniform(k)
        short = None if k is None else self._short_of(k)
        bought = buy(self._curve.steps(), self._spent)
        oracle = float(self._errors[0]) - bought.saved
        return {
            "allocation_efficiency": self._efficiency(uniform, oracle, short),
            "fvu_uniform": None if uniform is None else unexplained(uniform, self._spread),
            "short_of_uniform": short,
            "fvu_oracle": unexplained(oracle, self._spread),
            "fvu_oracle_slack": unexplained(self._curve.loss, self._spread),
            "fvu_in_order": unexplained(self._in_order, self._spread),
            "oracle_price": unexplained(bought.price * self._spread.n, self._spread),
            **self._sample.result(bought.price),
            "gain_correlation": float(self._correlations) / self._correlated if self._correlated else None,
            "k_max": len(self._errors) - 1,
            "beyond_k_max": self._beyond / self._spread.n,
        }

    def _add(self, errors: Tensor, spends: Tensor) -> None:
        first = len(self._errors) == 0
        self._errors = errors if first else self._errors + errors
        self._spends = spends if first else self._spends + spends

    def _efficiency(self, uniform: float | None, oracle: float, short: float | None) -> float | None:
        if uniform is None or short is None or short > 0.5:
            return None
        possible = uniform - oracle
        return (uniform - self._error) / possible if possible > _ROUNDING * uniform else None

    def _uniform_k(self) -> int | None:
        """The least k for all that spends what was spent, or more; None if k_max does not."""
        enough = (self._spends >= self._spent).nonzero()
        return int(enough[0]) if len(enough) else None

    def _short_of(self, k: int) -> float:
        having = int(self._spends[k] - self._spends[k - 1]) if k else self._spread.n
        return 1 - having / self._spread.n

    def _uniform(self, k: int) -> float:
        """The summed error of one k for all that spends what was spent, interpolated from the k before."""
        spends: list[int] = self._spends.tolist()
        errors: list[float] = self._errors.tolist()
        if spends[k] == self._spent:
            return errors[k]
        share = (self._spent - spends[k - 1]) / (spends[k] - spends[k - 1])
        return errors[k - 1] + share * (errors[k] - errors[k - 1])


def gain_correlations(errors: Tensor, counts: Tensor) -> Tensor:
    """[m]: Spearman's coefficient of falling place and gain, for the m tokens with three features or more.

    Args:
        errors: [n, k_max + 1], of a token's first k features.
        counts: [n] int64, how many of them a token has; equal gains rank by place.
    """
    enough = counts >= 3
    counts = counts[enough]
    if len(counts) == 0:
        return errors.new_zeros(0)
    width = int(counts.max())
    place = torch.arange(width, device=errors.device)
    # What lies past the end of a code ranks behind it, in its place.
    rises = errors[enough, : width + 1].diff().masked_fill(place >= counts[:, None], torch.inf)
    falling = rises.sort(dim=1, stable=True).indices
    rank = torch.empty_like(falling).scatter_(1, falling, place.expand_as(falling))
    apart = (rank - place).double().square().sum(1)
    return 1 - 6 * apart / (counts * (counts.double().square() - 1))


class _Curve:
    """The steps of all tokens, thinned when they are too many."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._parts: list[Steps] = []
        self._held = 0

    def add(self, steps: Steps) -> None:
        self._parts.append(steps)
        self._held += len(steps.gain)
        while self._held > STEPS:
            thin, loss = thinned(self.steps())
            self._parts, self._held = [thin], len(thin.gain)
            self.loss += loss

    def steps(self) -> Steps:
        return Steps(*map(torch.cat, zip(*self._parts, strict=True)))


class _Sample:
    """Errors and k of every token; of every second, every fourth …, once there are more than ``SAMPLE``."""

    def __init__(self) -> None:
        self._stride, self._next = 1, 0
        self._errors = torch.zeros(0)
        self._counts = torch.zeros(0, dtype=torch.int64)

    def add(self, errors: Tensor, counts: Tensor) -> None:
        kept = slice(self._next, None, self._stride)
        fresh = errors[kept].float()
        self._next += len(fresh) * self._stride - len(errors)
        self._errors = torch.cat([self._errors, fresh]) if len(self._errors) else fresh
        self._counts = torch.cat([self._counts, counts[kept]])
        while len(self._errors) > SAMPLE:
            self._next += self._stride * (len(self._errors) % 2)
            self._errors, self._counts = self._errors[::2].clone(), self._counts[::2]
            self._stride *= 2

    def result(self, price: float) -> dict[str, Json]:
        k = best_k(self._errors.double(), price)
        return {
            "oracle_l0": float(k.double().mean()),
            "oracle_l0_std": float(k.double().std(correction=0)),
            "oracle_l0_min": int(k.min()),
            "oracle_l0_max": int(k.max()),
            "oracle_tokens": len(k),
            "k_correlation": spearman(k, self._counts),
            "at_k_max": float((k == self._errors.shape[1] - 1).double().mean()),
        }
