"""What a feature's direction lies near, and which tokens it raises and lowers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..activations.models import LoadedModel
from ..errors import InvalidInput

_PRODUCTS_AT_ONCE = 1 << 24


@torch.no_grad()
def neighbours(W_dec: Tensor, features: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The features whose directions are nearest, by falling cosine: [m, n] int64 and [m, n] float32.

    Args:
        W_dec: [d_sae, d_in].
        features: [m] int64, whose neighbours are looked for; none is its own.
    """
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)

    def nearest(part: Tensor) -> tuple[Tensor, Tensor]:
        cosine = unit[part] @ unit.T
        cosine[torch.arange(len(part)), part] = -torch.inf
        top = cosine.topk(min(n, len(W_dec) - 1), dim=1)
        return top.indices.cpu(), top.values.cpu()

    indices, values = _blockwise(nearest, features, len(W_dec))
    return indices, values


def unembedding(model: LoadedModel, d_in: int, vocabulary: int | None = None) -> Tensor:
    """[vocabulary, d_in]: the rows by which ``model`` turns its last hidden state into logits.

    Args:
        vocabulary: rows from this on are padding.

    Raises:
        InvalidInput: the model predicts no next tokens or hides its unembedding, or is of another width.
    """
    inner: Any = model.model
    head = inner.get_output_embeddings() if model.causal else None
    if head is None:
        raise InvalidInput(
            f"the model {model.name!r} has no unembedding, so directions have no logits; give a causal model"
        )
    W_U: Tensor = head.weight.detach()
    if W_U.shape[1] != d_in:
        raise InvalidInput(
            f"the unembedding of {model.name!r} reads width {W_U.shape[1]} and the features have {d_in}, so they "
            "have no logits; use SAEs of its residual stream"
        )
    return W_U[:vocabulary]


@torch.no_grad()
def logits(directions: Tensor, W_U: Tensor, n: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The ``n`` tokens whose logits each direction raises most, and those that it lowers most.

    A direction's logits are its products with the rows of ``W_U``; a final norm is left out. Each pair is [m, n]
    int64 tokens and [m, n] logits, the strongest first.

    Args:
        directions: [m, d_in].
        W_U: [vocabulary, d_in].
    """
    most = min(n, len(W_U))

    def extremes(part: Tensor) -> tuple[Tensor, ...]:
        products = directions[part].to(W_U) @ W_U.T
        up, down = products.topk(most, dim=1), products.topk(most, dim=1, largest=False)
        return up.indices.cpu(), up.values.cpu(), down.indices.cpu(), down.values.cpu()

    up, raised, down, lowered = _blockwise(extremes, torch.arange(len(directions)), len(W_U))
    return (up, raised), (down, lowered)


def _blockwise(f: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """``f`` of parts of ``rows`` so small that [part, width] fits in memory, put together again."""
    step = max(_PRODUCTS_AT_ONCE // max(width, 1), 1)
    parts = [f(part) for part in rows.split(step)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
