"""What tokens have by themselves, whatever SAE reads them: a number for each row of a part."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..activations.contexts import ContextSource
from ..activations.models import LoadedModel
from ..activations.rows import StoreSource
from ..activations.source import Source, Split
from ..complexity import token_losses
from ..downstream import CAUSAL_CONTEXTS, check_model
from ..errors import InvalidInput
from ..metrics import local_dimension
from .reading import chosen, contexts_of

POINTS, POOL = 1024, 16_384
"""Tokens whose local dimension is estimated, and tokens that their neighbours are sought among."""


def surprisals(
    source: Source, model: LoadedModel, *, limit: int | None = None, split: Split = "evaluate"
) -> NDArray[np.float64]:
    """[rows] -log p of each row's token given those before it, nats; NaN for the first token of a context.

    Args:
        model: the causal language model that the source was captured from.
        limit: of the first so many rows, at least.

    Raises:
        InvalidInput: the model predicts no next token or is not the source's, or the source has no contexts.
    """
    if not model.causal:
        raise InvalidInput(
            f"the model {model.name!r} predicts no next token, so no token has a surprisal; leave the model out"
        )
    if isinstance(source, StoreSource):
        check_model(source, model, split)
    if not isinstance(source, ContextSource):
        raise InvalidInput(
            f"a model was given but a {type(source).__name__} has no contexts to feed it; leave the model out"
        )
    batches = source.contexts(split, CAUSAL_CONTEXTS, limit)
    found = [token_losses(model, one.input_ids, one.attention_mask)[one.keep] for one in batches]
    return torch.cat(found).double().numpy() if found else np.zeros(0)


def dimensions(
    source: Source, neighbours: int = 100, *, every: int = 1, limit: int | None = None, split: Split = "evaluate"
) -> NDArray[np.float64]:
    """[rows] the local intrinsic dimension at up to ``POINTS`` rows, evenly spaced; NaN at the others.

    Neighbours are sought among up to ``POOL`` rows, evenly spaced, of which the points are some; see
    ``metrics.local_dimension``. Of no more rows than neighbours there is none.

    Args:
        every, limit: as for ``adaptivity``, which then reads the same rows.

    Raises:
        InvalidInput: there are fewer than 3 neighbours, or ``every`` is below 1.
    """
    if every < 1:
        raise InvalidInput(f"each {every}-th context was to be read; give 1 or more")
    contexts = contexts_of(source)
    kept = [chosen(contexts, batch, every).numpy() for batch in source.blocks(split, limit)]
    found = np.full(sum(map(len, kept)), np.nan)
    rows = np.flatnonzero(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
    if neighbours >= len(rows):
        return found
    pool = rows[np.linspace(0, len(rows) - 1, min(len(rows), POOL)).astype(np.int64)]
    points = np.linspace(0, len(pool) - 1, min(len(pool), POINTS)).astype(np.int64)
    parts, first = [], 0
    for batch in source.blocks(split, limit):
        own = pool[(pool >= first) & (pool < first + len(batch.x))] - first
        parts.append(batch.x[torch.from_numpy(own)])
        first += len(batch.x)
    found[pool[points]] = local_dimension(torch.cat(parts), torch.from_numpy(points), neighbours).numpy()
    return found
