"""Run the model of a source with its states as a dictionary restores them, and measure what it still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .activations.capture import capture, patched
from .activations.contexts import Contexts, ContextSource
from .activations.models import LoadedModel
from .activations.rows import StoreSource
from .activations.source import Source, Split
from .errors import InvalidInput
from .metrics import CausalDownstream, Codec, EncoderDownstream, Json, device_of
from .progress import Shown, bar

CAUSAL_CONTEXTS, ENCODER_CONTEXTS = 8, 32
"""Most contexts that a patched model reads at once: three sets of logits, or hidden states, are held together."""
LOGIT_BYTES = 2**31
"""Of these sets together, in the type of the model. One context is the least, however much it takes."""
_APART = 0.01
"""Of the square of a state: more than what another precision or batch makes of it."""
KEPT_BYTES = 2**30
"""On the device of the model: those of 5,300 positions with 50,304 tokens in the vocabulary."""


class Downstream:
    """A model, the contexts that it is fed, and what it does with them as it is and with zeros.

    The last two are the same for all dictionaries: the run with zeros is made once, and so is that of the model
    as it is where its outputs fit into ``KEPT_BYTES``. That leaves one run of three to the second dictionary.

    Args:
        source: what was captured from ``model``; its module's kept positions are what is replaced.
        limit: rows (a context is always finished), ``None`` for all.
        keep_bytes: how much of the outputs of the model as it is to keep for the next dictionary.

    Raises:
        InvalidInput: the source has no contexts to feed the model, or is a store and another model's.
    """

    def __init__(
        self,
        source: Source,
        model: LoadedModel,
        split: Split = "evaluate",
        limit: int | None = None,
        *,
        keep_bytes: int = KEPT_BYTES,
    ) -> None:
        if isinstance(source, StoreSource):
            check_model(source, model, split)
        if not isinstance(source, ContextSource):
            raise InvalidInput(
                f"a model was given but a {type(source).__name__} has no contexts to feed it; "
                "leave the model out or evaluate on a store of captured text"
            )
        source.contexts(split, 1, limit)  # one that has none says so here and not after hours
        self._source: ContextSource = source
        self._model, self._split, self._limit = model, split, limit
        self._first: CausalDownstream | EncoderDownstream | None = None
        self._clean: list[Tensor] = []
        self._room = keep_bytes

    @torch.no_grad()
    def of(self, sae: Codec, progress: Shown = False) -> dict[str, Json]:
        """The results of ``CausalDownstream`` if the model predicts next tokens, else of ``EncoderDownstream``.

        Raises:
            InvalidInput: the module's states are not as wide as what ``sae`` reads, or there are none.
        """
        causal = self._model.causal
        metric = self._first.again() if self._first else CausalDownstream() if causal else EncoderDownstream()
        batches = self._source.contexts(self._split, CAUSAL_CONTEXTS if causal else ENCODER_CONTEXTS, self._limit)
        parts = (part for contexts in batches for part in self._parts(contexts))
        for number, contexts in enumerate(bar(parts, desc="downstream", unit="batch", shown=progress)):
            inputs = contexts.inputs(self._model.device)
            keep = contexts.keep.to(self._model.device)
            clean = self._as_it_is(number, inputs)
            restored = self._replaced(inputs, keep, lambda rows: _restore(sae, rows))
            zeroed = None if self._first else self._replaced(inputs, keep, torch.zeros_like)
            if isinstance(metric, CausalDownstream):
                metric.update(
                    clean_logits=clean, patched_logits=restored, zero_logits=zeroed, keep=keep, **inputs
                )
            else:
                metric.update(clean=clean, patched=restored, zero=zeroed, keep=keep)
            del clean, restored, zeroed  # for the next contexts to have their memory
        result = metric.result()
        self._first = self._first or metric
        return result

    def _as_it_is(self, number: int, inputs: dict[str, Tensor]) -> Tensor:
        """The output for a batch of contexts, from an earlier run if that was kept."""
        if number < len(self._clean):
            return self._clean[number]
        output = self._output(inputs)
        if number == len(self._clean) and output.nbytes <= self._room:
            self._room -= output.nbytes
            self._clean.append(output)
        return output

    def _parts(self, contexts: Contexts) -> Iterator[Contexts]:
        """The batch in parts whose logits fit into ``LOGIT_BYTES``, padded as it is."""
        count, length = contexts.input_ids.shape
        one = 3 * self._model.output_bytes(length)
        step = max(1, LOGIT_BYTES // one) if one else count
        return (contexts.part(slice(at, at + step)) for at in range(0, count, step))

    def _replaced(self, inputs: dict[str, Tensor], keep: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """The output with ``fn`` applied to the kept rows of the module's states."""
        with patched(self._model.model, self._source.module, _replacing(keep, fn)):
            return self._output(inputs)

    def _output(self, inputs: dict[str, Tensor]) -> Tensor:
        # Of a model that is spread over devices, the last one may be another than the first.
        return self._model.output(inputs).to(self._model.device)


def check_model(source: StoreSource, model: LoadedModel, split: Split = "evaluate") -> None:
    """Refuse a model whose states on a context of the store are not those that the store has of it.

    Its name says too little: a folder may hold other weights by the same one.

    Raises:
        InvalidInput: they are not, or of another width.
    """
    contexts = next(source.contexts(split, 1, 1), None)
    if contexts is None:
        return  # nothing is held out, which is said elsewhere
    captured = next(source.blocks(split, contexts.rows)).x
    states = capture(model.model, [source.module], contexts.inputs(model.device))[source.module]
    states = states[contexts.keep.to(states.device)].to("cpu", torch.float32)[: len(captured)]
    if states.shape[-1] != captured.shape[-1]:
        raise _another_model(source, model, f"states of width {states.shape[-1]} and not {captured.shape[-1]}")
    # Of a typical row: the first of a context can be hundreds of times as long as all others.
    apart = float(((states - captured).square().sum(1) / captured.square().sum(1)).median())
    if not apart <= _APART:
        raise _another_model(source, model, f"states that differ by {apart:.0%} of their square")


def _another_model(source: StoreSource, model: LoadedModel, how: str) -> InvalidInput:
    return InvalidInput(
        f"{model.name} has {how}, at {source.module} on the first context that the store has from "
        f"{source.manifest.model}; give the model and the weights that it was captured from"
    )


def fewer(*limits: int | None) -> int | None:
    """The smallest of the limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)


def _replacing(keep: Tensor, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Apply ``fn`` to the kept rows of a hidden state [c, L, d]; the others and its dtype stay."""

    def replace(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        at = keep.to(hidden.device)
        changed[at] = fn(hidden[at]).to(hidden.device, hidden.dtype)
        return changed

    return replace


def _restore(sae: Codec, rows: Tensor) -> Tensor:
    if rows.shape[-1] != sae.d_in:
        raise InvalidInput(
            f"the model's module gives width {rows.shape[-1]} and the SAE reads width {sae.d_in}; "
            "pass the model that the source was captured from"
        )
    return sae.decode(sae.encode(rows.to(device_of(sae), torch.float32)))
