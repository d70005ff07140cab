"""What may guide k: a number for every document, or for every token, of a source of the quality suite.

``human``        people's word on how hard the document reads: a ridge regression of the ratings of other texts on
                 their mean activation at the same layer, asked about the document's mean activation
``readability``  the formula that follows these people best
``surprisal``    the mean loss of a causal language model over the document
``token_loss``   each token's own loss; of another tokenizer's tokens, each has its share by characters
``permuted``     ``human``, shuffled among the documents: the control

Each is turned so that larger means more complex, and standardised on the training part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptive_k import Rated, best_formula, layers, pooled, read_rated
from numpy.typing import NDArray
from rows import CACHE
from tqdm import tqdm

import apportion as ap
from apportion.activations import LabelledSource, load_model
from apportion.activations.contexts import most_positions
from apportion.activations.models import LoadedModel
from apportion.activations.pooling import TextPools
from apportion.activations.store import cutter_of
from apportion.activations.texts import Document
from apportion.complexity import LanguageModel, ReadabilityConfig, SurprisalConfig, Text, Tools, fit_scale
from apportion.complexity.probe import fit_probe
from apportion.config import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class GuidesSpec(Config):
    """What the guides are made with.

    Attributes:
        rated: file of texts with people's ratings; column: their field; direction: ``down`` if they fall as
            complexity rises.
        language_model: a causal model, for losses.
    """

    rated: str
    column: str
    direction: str
    language_model: str


class Guides:
    """The guides of one source.

    Args:
        documents: those of the store, in its order.
        source: the store; ``module`` of ``model``.
    """

    def __init__(
        self, spec: GuidesSpec, documents: Sequence[Document], source: ap.StoreSource, model: LoadedModel
    ) -> None:
        assert [document.id for document in documents] == source.documents
        self.spec, self.documents, self.source, self.model = spec, list(documents), source, model
        self.made: dict[str, Callable[[], Floats]] = {
            "human": self.human,
            "readability": self.readability,
            "surprisal": self.surprisal,
            "token_loss": self.token_loss,
            "permuted": self.permuted,
        }

    def guided(self, name: str) -> LabelledSource:
        """The source with the guide ``name`` as its targets."""
        values = self._cached(name)
        document = np.arange(len(self.documents))
        start = np.zeros_like(document)
        if len(values) > len(document):  # one per row
            document, start = self._places()
        own = values[self.source.in_training()[document]]
        scale = fit_scale(own[np.isfinite(own)], 1)
        about = {"guide": name, **self.spec.model_dump(exclude={"rated", "language_model"})}
        return LabelledSource(self.source, document, start, scale(values), about)

    def human(self) -> Floats:
        rated = self._rated()
        pools = pooled(rated, self.model, layers(self.model.model))[f"mean/{self.source.module}"]
        probe = fit_probe(pools.numpy(), rated.ratings)
        means = TextPools(len(self.documents), self.source.d_in, every=1 << 30)
        for batch in self.source.rows():
            assert batch.document is not None
            means.add(batch.x, batch.document)
        return probe(means.mean.numpy())

    def readability(self) -> Floats:
        formula, _ = best_formula(self._rated())
        scorer = ReadabilityConfig(formula=formula).build(Tools())
        texts = (Text(document.id, document.text) for document in self.documents)
        found = [one.value for one in tqdm(scorer.score(texts), total=len(self.documents), unit="text")]
        return scorer.direction * np.array(found, np.float64)

    def surprisal(self) -> Floats:
        return np.array([np.nanmean(losses) for _, losses in self._losses()])

    def token_loss(self) -> Floats:
        own = [
            shared_out(offsets, losses, self._offsets(d))
            for d, (offsets, losses) in zip(self.documents, self._losses(), strict=True)
        ]
        counts = np.bincount(self._places()[0])
        assert [len(losses) for losses in own] == counts.tolist(), "the store has other tokens"
        return np.concatenate(own)

    def permuted(self) -> Floats:
        values = self._cached("human").copy()
        np.random.default_rng(0).shuffle(values)
        return values

    def _cached(self, name: str) -> Floats:
        key = json.dumps([name, self.spec.model_dump(), self.source.manifest.fingerprint])
        file = CACHE / f"guide-{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
        if not file.exists():
            values = self.made[name]()
            unfinished = file.with_suffix(".part.npy")
            np.save(unfinished, values)
            unfinished.rename(file)
        return np.asarray(np.load(file), np.float64)

    def _rated(self) -> Rated:
        return read_rated(self.spec.rated, self.spec.column, self.spec.direction, heldout=0.3)

    def _losses(self) -> list[tuple[Ints, Floats]]:
        """Of every document, the characters [tokens, 2] and loss [tokens] of the language model's tokens."""
        loaded = load_model(self.spec.language_model)
        length = most_positions(loaded.model) or 1024
        tool = LanguageModel(loaded, cutter_of(loaded, (), length, tensors=False), length)
        scorer = SurprisalConfig(model=self.spec.language_model).build(Tools(lambda *_: tool))
        found = []
        for document in tqdm(self.documents, unit="document"):
            digest = hashlib.sha256(json.dumps([self.spec.language_model, document.text]).encode()).hexdigest()
            file = CACHE / f"losses-{Path(self.spec.language_model).name}" / f"{digest[:16]}.npy"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                (losses,) = scorer.token_losses([Text(document.id, document.text)])
                unfinished = file.with_suffix(".part.npy")
                np.save(unfinished, losses)
                unfinished.rename(file)
            losses = np.load(file).astype(np.float64)
            offsets = offsets_of(loaded, document.text)
            assert len(offsets) == len(losses)
            found.append((offsets, losses))
        return found

    def _places(self) -> tuple[Ints, Ints]:
        """Document of every row and place in it."""
        found = []
        for batch in self.source.rows():
            assert batch.document is not None and batch.position is not None
            found.append(torch.stack([batch.document, batch.position]))
        document, position = torch.cat(found, dim=1).numpy()
        return document, position

    def _offsets(self, document: Document) -> Ints:
        return offsets_of(self.model, document.text)


def offsets_of(model: LoadedModel, text: str) -> Ints:
    """[tokens, 2] the characters of every token that a capture keeps."""
    encoded: Any = model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    special = np.isin(encoded["input_ids"], model.tokenizer.all_special_ids)
    return np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)[~special]


def shared_out(offsets: Ints, losses: Floats, others: Ints) -> Floats:
    """[m] the loss per token ``losses [t]`` of tokens at ``offsets [t, 2]``, for tokens at ``others [m, 2]``.

    A token's loss is spread evenly over its characters, and every other token has the sum over its own. NaN where
    a part of it has no loss.
    """
    if np.array_equal(offsets, others):
        return losses
    n = int(max(offsets.max(initial=0), others.max(initial=0)))
    density, unknown = np.zeros(n), np.zeros(n)
    for (begin, end), loss in zip(offsets, losses, strict=True):
        if np.isnan(loss):
            unknown[begin:end] = 1
        else:
            density[begin:end] += loss / max(end - begin, 1)
    total, missing = (np.concatenate([[0.0], column.cumsum()]) for column in (density, unknown))
    begin, end = others.T
    return np.where(missing[end] > missing[begin], np.nan, total[end] - total[begin])
