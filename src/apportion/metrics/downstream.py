"""What a model still does when its hidden states are replaced by reconstructions.

Pure accumulators: they see the outputs of three runs over the same contexts (as they are, with the
reconstruction in place of the hidden state, with zeros in its place) and know nothing of the model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidInput, NonFiniteActivations
from .base import Json, Moments, need_tokens, unexplained, wide

CHUNK_ENTRIES = 2**23
"""Logits in float64 at a time: 64 MiB."""


class CausalDownstream:
    """Next-token cross-entropy and KL divergence of a patched language model, nats per position.

    Positions are those whose hidden state was replaced and that have a next token, the same in all three
    runs. ``ce_score`` = (ce_zero − ce_patched) / (ce_zero − ce_clean): exactly 1 when patched logits equal
    clean ones, exactly 0 when they equal those of zeroed states, ``None`` when zeroing changes nothing.
    ``kl`` is KL(clean ‖ patched). ``downstream_tokens`` counts positions.

    The zeroed run is the same whatever is put in place of the hidden states: ``again`` gives an accumulator for
    another dictionary over the same contexts that needs it no more.
    """

    def __init__(self) -> None:
        self._n = 0
        self._expected: int | None = None
        # One running sum per run, all added to in one order: equal logits give equal sums, to the bit.
        self._clean = self._patched = self._zero = self._kl = 0.0

    def again(self) -> CausalDownstream:
        """One for the same contexts, in the same order, that has the zeroed run's sum from here.

        Raises:
            InvalidInput: nothing was counted here yet.
        """
        need_tokens(self._n)
        other = CausalDownstream()
        other._zero, other._expected = self._zero, self._n
        return other

    def update(
        self,
        *,
        clean_logits: Tensor,
        patched_logits: Tensor,
        zero_logits: Tensor | None,
        input_ids: Tensor,
        keep: Tensor,
        attention_mask: Tensor,
    ) -> None:
        """Add a batch of contexts.

        Args:
            clean_logits, patched_logits, zero_logits: [c, L, vocabulary]; no ``zero_logits`` after ``again``.
            input_ids: [c, L] int64.
            keep: [c, L] bool, where the hidden state was replaced.
            attention_mask: [c, L], not 0 at real tokens.

        Raises:
            InvalidInput: the shapes do not fit together, or the zeroed run is missing or given twice.
        """
        _check_zero(zero_logits, self._expected is not None)
        _check_equal("logits", clean_logits, patched_logits, *(() if zero_logits is None else (zero_logits,)))
        _check_equal("masks and input_ids", input_ids, keep, attention_mask, clean_logits[..., 0])
        real = attention_mask.bool()
        scored = (keep.bool() & real)[:, :-1] & real[:, 1:]
        step = max(1, CHUNK_ENTRIES // clean_logits.shape[-1])
        for positions in torch.split(scored.nonzero(), step):
            row, column = positions.unbind(1)
            target = input_ids[row, column + 1, None]
            clean = _log_probabilities(clean_logits[row, column])
            patched = _log_probabilities(patched_logits[row, column])
            self._clean -= float(clean.gather(1, target).sum())
            self._patched -= float(patched.gather(1, target).sum())
            if zero_logits is not None:
                zero = _log_probabilities(zero_logits[row, column])
                self._zero -= float(zero.gather(1, target).sum())
            self._kl += float(_divergence(clean, patched))
            self._n += len(row)

    def result(self) -> dict[str, Json]:
        """``ce_clean``, ``ce_patched``, ``ce_zero``, ``ce_score``, ``kl``, ``downstream_tokens``.

        Raises:
            InvalidInput: no position so far was replaced and followed by a token, or after ``again`` the contexts
                were not those of before.
            NonFiniteActivations: one of the sums is NaN or infinite.
        """
        need_tokens(self._n)
        _check_same(self._n, self._expected)
        sums = (self._clean, self._patched, self._zero, self._kl)
        if not all(map(math.isfinite, sums)):
            raise NonFiniteActivations(
                f"cross-entropies and divergence sum to {sums}, all must be finite; "
                "look for NaN or infinite weights, or a model in half precision that overflows"
            )
        span = self._zero - self._clean
        return {
            "downstream_tokens": self._n,
            "ce_clean": self._clean / self._n,
            "ce_patched": self._patched / self._n,
            "ce_zero": self._zero / self._n,
            "ce_score": (self._zero - self._patched) / span if span else None,
            "kl": self._kl / self._n,
        }


class EncoderDownstream:
    """Relative error of a patched encoder's final hidden state, over the replaced positions.

    ``hidden_error`` = Σ‖h_patched − h_clean‖² / Σ‖h_clean − mean h_clean‖² in float64, exactly 0 when
    patching changes nothing; ``hidden_error_zero`` the same for zeroed states; ``downstream_tokens`` counts
    positions. ``again`` is as that of ``CausalDownstream``.
    """

    def __init__(self) -> None:
        self._spread = Moments()
        self._patched = self._zero = 0.0
        self._expected: int | None = None

    def again(self) -> EncoderDownstream:
        """One for the same contexts, in the same order, that has the zeroed run's sum from here.

        Raises:
            InvalidInput: nothing was counted here yet.
        """
        need_tokens(self._spread.n)
        other = EncoderDownstream()
        other._zero, other._expected = self._zero, self._spread.n
        return other

    def update(self, *, clean: Tensor, patched: Tensor, zero: Tensor | None, keep: Tensor) -> None:
        """Add a batch of contexts.

        Args:
            clean, patched, zero: [c, L, d] final hidden states; no ``zero`` after ``again``.
            keep: [c, L] bool, where the hidden state was replaced.

        Raises:
            InvalidInput: the shapes do not fit together, or the zeroed run is missing or given twice.
        """
        _check_zero(zero, self._expected is not None)
        _check_equal("final hidden states", clean, patched, *(() if zero is None else (zero,)))
        _check_equal("keep", keep, clean[..., 0])
        at = keep.bool()
        reference = wide(clean[at])
        self._spread.update(reference)
        self._patched += float((wide(patched[at]) - reference).square().sum())
        if zero is not None:
            self._zero += float((wide(zero[at]) - reference).square().sum())

    def result(self) -> dict[str, Json]:
        """``hidden_error``, ``hidden_error_zero``, ``downstream_tokens``.

        Raises:
            InvalidInput: nothing was replaced so far, the clean states are all equal, or after ``again`` the
                contexts were not those of before.
        """
        _check_same(self._spread.n, self._expected)
        return {
            "downstream_tokens": self._spread.n,
            "hidden_error": unexplained(self._patched, self._spread),
            "hidden_error_zero": unexplained(self._zero, self._spread),
        }


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(wide(logits), -1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ over rows of KL(p ‖ q); entries with p = 0 add nothing, also where both logarithms are −∞."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum()


def _check_zero(zero: Tensor | None, known: bool) -> None:
    if (zero is None) != known:
        raise InvalidInput(
            "the zeroed run was given again, leave it out after `again`"
            if known
            else "the zeroed run is missing, only an accumulator from `again` knows it; give it"
        )


def _check_same(n: int, expected: int | None) -> None:
    if expected not in (None, n):
        raise InvalidInput(
            f"{n} positions were counted, expected {expected} as the first time; give the same contexts again"
        )


def _check_equal(what: str, *tensors: Tensor) -> None:
    shapes = [list(t.shape) for t in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise InvalidInput(f"{what} of shapes {shapes} do not fit; pass the outputs of one batch of contexts")
