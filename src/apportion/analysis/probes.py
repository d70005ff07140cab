"""How well a few features tell the label of a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ..activations.source import Batch, Source
from ..activations.splits import Bools
from ..errors import InvalidInput
from ..evaluate import reblock
from ..metrics import Classes, Codec, DocumentMeans, SparseProbe, device_of, sparse_probe
from ..progress import Shown, bar
from .reading import taken


@runtime_checkable
class RowSource(Protocol):
    """A source that knows its documents and hands out all of its rows, as ``StoreSource`` does."""

    documents: list[str]

    def in_training(self) -> Bools: ...

    def rows(self) -> Iterator[Batch]: ...


def register_probes(
    sae: Codec,
    source: Source,
    labels: Classes,
    *,
    n_features: Sequence[int] = (1, 2, 5),
    document_tokens: int | None = 256,
    progress: Shown = False,
) -> list[SparseProbe]:
    """How well 1, 2 and 5 features for each label tell the label of a document; see ``sparse_probe``.

    Probes are fitted to the documents that training read and asked about all others.

    Args:
        source: a store.
        labels: a word for each of ``source.documents``.
        document_tokens: read the first so many tokens of each document; ``None`` for all.

    Raises:
        InvalidInput: the source is no store, widths differ, or the labels make no probe.
        MissingExtra: scikit-learn is not installed.
    """
    if not isinstance(source, RowSource) or source.d_in != sae.d_in:
        raise InvalidInput(
            f"a {type(source).__name__} of width {source.d_in} cannot be probed with an SAE of width {sae.d_in}; "
            "give a StoreSource of the module that it was trained on"
        )
    means = DocumentMeans(len(source.documents), sae.d_sae)
    blocks = reblock(_first_rows(source, document_tokens))
    with torch.no_grad():
        for batch in bar(blocks, desc="probe", unit="block", shown=progress):
            assert batch.document is not None
            means.update(sae.encode(batch.x.to(device_of(sae))), batch.document)
    read = Classes(labels.names, np.where(means.tokens.numpy() > 0, labels.of, -1))
    code, training = means.result(), source.in_training()
    return [sparse_probe(code, read, training, n) for n in n_features]


def labels_of(
    documents: Sequence[str],
    words: Mapping[str, str],
    digests: Sequence[str] = (),
    labelled: Mapping[str, str] | None = None,
) -> Classes:
    """The word of each document, by its id.

    Args:
        digests: of the documents' texts, as ``StoreSource.digests`` has them.
        labelled: the digest of the text that each word was given to, by its id.

    Raises:
        InvalidInput: none of the ids has a word, or some stand for another text than a word was given to.
    """
    known = labelled or {}
    pairs = [(name, digest, known.get(name, "")) for name, digest in zip(documents, digests, strict=False)]
    if other := [name for name, digest, own in pairs if "" not in (digest, own) and digest != own]:
        raise InvalidInput(
            f"{len(other):,} of {sum(name in words for name in documents):,} labelled documents have another "
            f"text than the one captured under their id (first: {other[0]!r}); give the data that was captured"
        )
    names = sorted(set(words.values()))
    number = {name: at for at, name in enumerate(names)}
    of = np.array([number.get(words.get(name, ""), -1) for name in documents], np.int64)
    if not (of >= 0).any():
        raise InvalidInput(f"none of the {len(documents):,} documents has a label; give labels under their ids")
    return Classes(names, of)


def _first_rows(source: RowSource, n: int | None) -> Iterator[Batch]:
    for batch in source.rows():
        assert batch.position is not None
        rows = batch.position < n if n is not None else torch.ones_like(batch.position, dtype=torch.bool)
        if rows.any():
            yield taken(batch, rows)
