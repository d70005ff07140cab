"""Surprisal: how badly a causal language model predicts a text, token by token."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ..errors import InvalidInput
from .base import CausalModel, LanguageModel, Scored, Scorer, ScorerConfig, Text, Tools, Window

CHUNK_ENTRIES = 2**23
"""Logits in float32 whose losses are computed at a time: 32 MiB."""

LOGIT_BYTES = 2**31
"""Of the logits that are held at once. One context is the least, however much it takes."""

_BATCHES = 8  # batches' worth of texts that are sorted by length together

Losses = NDArray[np.float32]


class SurprisalConfig(ScorerConfig):
    """Mean loss of a model's next-token predictions, nats per token.

    Attributes:
        model: hub id or folder of a causal model.
        context: most tokens that it reads at once, special tokens included; longer texts are cut, and the
            first token of each piece is not scored. None for the model's own length, at most 1,024.
        batch_size: contexts per forward pass.
    """

    kind: Literal["surprisal"] = "surprisal"
    model: str = Field(min_length=1)
    context: int | None = Field(default=None, ge=2)
    batch_size: int = Field(default=8, ge=1)

    def build(self, tools: Tools) -> Surprisal:
        return Surprisal(self, tools.language_model(self.model, self.context))


class Surprisal(Scorer):
    """The mean over a text's tokens of −log p(token | those before it in its context).

    Raises ``InvalidInput`` for a model that predicts no next token.
    """

    direction = +1

    def __init__(self, config: SurprisalConfig, language_model: LanguageModel) -> None:
        self.config: SurprisalConfig = config
        self._model, self._cutter, self._context = language_model
        if not self._model.causal:
            raise InvalidInput(
                f"the model {self._model.name!r} predicts no next token, so there is no loss to score with; give "
                "a causal language model"
            )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"context": self._context}

    def score(self, texts: Iterable[Text]) -> Generator[Scored, None, None]:
        for text, losses in self._with_losses(texts):
            found = losses[~np.isnan(losses)]
            if len(found):
                yield Scored.of(text, float(found.mean(dtype=np.float64)))
            else:
                yield Scored.failed(text, "no token with another before it")

    def token_losses(self, texts: Iterable[Text]) -> Iterator[Losses]:
        """Each token's own loss, [tokens] nats per text, NaN for the first of a context.

        Tokens are those that a capture with the same tokenizer and context keeps, in that order.
        """
        return (losses for _, losses in self._with_losses(texts))

    def _with_losses(self, texts: Iterable[Text]) -> Iterator[tuple[Text, Losses]]:
        stream = iter(texts)
        while chunk := list(islice(stream, _BATCHES * self.config.batch_size)):
            cut = [list(own) for own in self._cutter.windows(chunk, 0)]
            flat = [window for own in cut for window in own]
            losses = iter(self._of_windows(flat))
            for text, own in zip(chunk, cut, strict=True):
                yield text, np.concatenate([np.zeros(0, np.float32), *islice(losses, len(own))])

    def _of_windows(self, windows: Sequence[Window]) -> list[Losses]:
        """The losses of the kept tokens of each window."""
        found: dict[int, Losses] = {}
        by_length = sorted(range(len(windows)), key=lambda number: -len(windows[number].ids))
        for at in range(0, len(by_length), self.config.batch_size):
            numbers = by_length[at : at + self.config.batch_size]
            rows = self._of_batch([torch.from_numpy(windows[number].ids).long() for number in numbers])
            for number, row in zip(numbers, rows.numpy(), strict=True):
                keep = windows[number].keep
                found[number] = row[: len(keep)][keep]
        return [found[number] for number in range(len(windows))]

    def _of_batch(self, ids: Sequence[Tensor]) -> Tensor:
        tokens = pad_sequence(list(ids), batch_first=True)
        mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        return token_losses(self._model, tokens, mask)


@torch.no_grad()
def token_losses(model: CausalModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """-log p of each token given those before it, nats.

    Args:
        input_ids, attention_mask: [c, L] int64, padded on the right.

    Returns:
        [c, L] float32 on the CPU, NaN for the first token of a context and where padded.

    Raises:
        InvalidInput: a context begins with padding.
    """
    if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise InvalidInput(
            f"{int((attention_mask[:, 0] == 0).sum())} of {len(input_ids)} contexts are padded on the left or "
            "within; expected padding on the right: put it there"
        )
    one = model.output_bytes(input_ids.shape[1])
    step = max(1, LOGIT_BYTES // one) if one else len(input_ids)
    parts = zip(input_ids.split(step), attention_mask.split(step), strict=True)
    return torch.cat([_losses(model, tokens, mask) for tokens, mask in parts])


def _losses(model: CausalModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    tokens, mask = input_ids.to(model.device), attention_mask.to(model.device)
    logits = model.output({"input_ids": tokens, "attention_mask": mask}).to(model.device)
    losses = torch.full(tokens.shape, torch.nan, device=model.device)
    step = max(1, CHUNK_ENTRIES // logits.shape[-1])
    for positions in torch.split(mask[:, 1:].nonzero(), step):
        row, before = positions.unbind(1)
        own = cross_entropy(logits[row, before].float(), tokens[row, before + 1], reduction="none")
        losses[row, before + 1] = own.nan_to_num(torch.inf, posinf=torch.inf)  # NaN means "not scored"
    return losses.cpu()
