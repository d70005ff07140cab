"""``SyntheticSource``: activations whose dictionary, and whose number of features per token, are known."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..config import Config
from .rows import SplitRows, SplitSource
from .shuffle import generator
from .source import Batch
from .splits import Ints

DOCUMENT_ROWS = 64
"""Tokens made together: a document, drawn from a generator of its own, is the unit of random access."""

_FRAME_ROUNDS = 30  # after these, the squared cosines of a tight frame sum to their bound within 1e-6
_HALVINGS = 200


class SyntheticConfig(Config):
    """How tokens are made; with ``seed`` it decides every one of them.

    A token has n features and is x = Σ_f a_f d_f + noise over them.

    Attributes:
        d_in: width of an activation.
        n_features: true features. They stand in order of frequency, the most frequent first.
        directions: of the features, unit vectors: ``gaussian`` independent and uniform; ``tight_frame`` those
            moved to the least possible sum of squared cosines (orthogonal where n_features ≤ d_in).
        zipf: s. The n features are drawn without replacement, feature f = 1, 2, … with weight f^−s.
        k: mean of n over tokens.
        spread: standard deviation of log n before rounding and clipping.
        k_max: largest n. n is a log-normal number rounded and clipped to 1 … k_max, its median such that the
            mean *after* that is ``k``; n says nothing about which features are drawn.
        magnitude_spread: σ of a_f = s_f · (1 + σ |normal|).
        scale_spread: standard deviation of log s_f over features; 0 for s_f = 1.
        noise: standard deviation of the normal noise in each coordinate.
        n_tokens: tokens in all, held-out ones included.
        seed: of the dictionary and of the tokens.
    """

    d_in: int = Field(default=128, ge=1)
    n_features: int = Field(default=512, ge=2)
    directions: Literal["gaussian", "tight_frame"] = "gaussian"
    zipf: float = Field(default=1.0, ge=0, le=3)
    k: float = Field(default=16.0, gt=1)
    spread: float = Field(default=0.8, ge=0.01, le=5)
    k_max: int = Field(default=64, ge=2)
    magnitude_spread: float = Field(default=0.5, ge=0, le=10)
    scale_spread: float = Field(default=0.0, ge=0, le=3)
    noise: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    n_tokens: int = Field(default=1_000_000, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _room_for_k(self) -> SyntheticConfig:
        if not self.k < self.k_max <= self.n_features:
            raise ValueError(
                f"k = {self.k:g}, k_max = {self.k_max} and n_features = {self.n_features} do not fit; expected "
                "k < k_max ≤ n_features: lower k or give more features"
            )
        return self


class SyntheticSource(SplitSource):
    """Tokens made from a known dictionary, each time they are asked for; memory holds two pools of them.

    ``Batch.target`` is the true number of features of each token. A token depends on the config and its own
    number alone. Documents are 64 consecutive tokens, which have nothing in common.

    Args:
        heldout, split_seed, buffer_rows: as for ``StoreSource``. A buffer of less than 65,536 rows makes a
            token several times per epoch.

    Attributes:
        config: how tokens are made.
        directions: [n_features, d_in] float32, the true dictionary, a unit vector per row.
        documents: the id of every document; ``Batch.document`` is an index into it.
        n_train: tokens in the training part.
    """

    def __init__(
        self,
        config: SyntheticConfig,
        *,
        heldout: float = 0.2,
        split_seed: int = 0,
        buffer_rows: int = 65_536,
    ) -> None:
        self.config, self._heldout, self._seed = config, heldout, split_seed
        self._rows = _SyntheticRows(config)
        self.directions = self._rows.directions
        begins = np.arange(0, config.n_tokens, DOCUMENT_ROWS, dtype=np.int64)
        counts = np.minimum(DOCUMENT_ROWS, config.n_tokens - begins)
        self.documents = [str(number) for number in range(len(begins))]
        outliers = np.zeros(0, np.int64)
        self._split = SplitRows(
            self._rows, self.documents, begins, counts, outliers, heldout, split_seed, buffer_rows
        )

    @property
    def d_in(self) -> int:
        return self.config.d_in

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "synthetic",
            "fingerprint": self._rows.fingerprint(),
            "d_in": self.d_in,
            "rows": self.config.n_tokens,
            "documents": len(self.documents),
            "config": self.config.model_dump(mode="json"),
            "heldout": self._heldout,
            "split_seed": self._seed,
        }


class _SyntheticRows:
    """Tokens by number. Documents are made whole, so that a token's bits depend on no other request."""

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config
        random = generator(config.seed)
        self.directions = true_directions(config, random)
        self._scales = np.exp(config.scale_spread * random.standard_normal(config.n_features)).astype(np.float32)
        self._waits = np.arange(1, config.n_features + 1, dtype=np.float32) ** np.float32(config.zipf)
        self._up_to = count_shares(config.k, config.spread, config.k_max).cumsum()[:-1]

    def fingerprint(self) -> str:
        """A hash of the config and of the first document, whose bits may differ between machines."""
        digest = hashlib.blake2b(self._config.digest().encode(), digest_size=16)
        for column in self.document(0):
            digest.update(column.numpy().data)
        return digest.hexdigest()

    def gather(self, rows: Ints) -> Batch:
        numbers, place = np.unique(rows // DOCUMENT_ROWS, return_inverse=True)
        made = [self.document(int(number)) for number in numbers]
        x, counts = (torch.cat(column) for column in zip(*made, strict=True))
        at = torch.from_numpy(place.reshape(-1) * DOCUMENT_ROWS + rows % DOCUMENT_ROWS)
        document, position = np.divmod(rows, DOCUMENT_ROWS)
        return Batch(x[at], torch.from_numpy(document), torch.from_numpy(position), counts[at])

    def document(self, number: int) -> tuple[Tensor, Tensor]:
        """[64, d_in] float32 activations and [64] float32 true counts."""
        config, random = self._config, generator(self._config.seed, number)
        wanted = 1 + np.searchsorted(self._up_to, random.random(DOCUMENT_ROWS), side="right")
        rows, features = self._draw(wanted, random)
        counts = np.bincount(rows, minlength=DOCUMENT_ROWS)
        surplus = np.abs(random.standard_normal(len(features), dtype=np.float32))
        magnitudes = self._scales[features] * (1 + np.float32(config.magnitude_spread) * surplus)
        x = embedding_bag(
            torch.from_numpy(features),
            self.directions,
            torch.from_numpy(counts.cumsum() - counts),
            mode="sum",
            per_sample_weights=torch.from_numpy(magnitudes),
        )
        noise = random.standard_normal((DOCUMENT_ROWS, config.d_in), dtype=np.float32)
        return x + torch.from_numpy(noise) * config.noise, torch.from_numpy(counts).float()

    def _draw(self, wanted: Ints, random: np.random.Generator) -> tuple[Ints, Ints]:
        """[nnz] rows and features of ``wanted [n]`` features per row, without replacement, by Zipf weights.

        A race: feature f arrives after an exponential time of mean f^s, and the first arrivals are drawn.
        """
        tickets = random.random((len(wanted), self._config.n_features), dtype=np.float32)
        arrival = -np.log(1 - tickets) * self._waits
        most = int(wanted.max())
        first = np.sort(np.partition(arrival, most - 1, axis=1)[:, :most], axis=1)
        last = np.take_along_axis(first, wanted[:, None] - 1, axis=1)
        chosen = np.flatnonzero(arrival <= last)
        return np.divmod(chosen, self._config.n_features)


def true_directions(config: SyntheticConfig, random: np.random.Generator) -> Tensor:
    """[n_features, d_in] float32 unit rows, as ``SyntheticConfig.directions`` says."""
    rows = _unit(random.standard_normal((config.n_features, config.d_in)))
    if config.directions == "tight_frame":
        for _ in range(_FRAME_ROUNDS):
            left, _, right = np.linalg.svd(rows, full_matrices=False)
            rows = _unit(left @ right)
    return torch.from_numpy(rows.astype(np.float32))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float64)


def count_shares(k: float, spread: float, k_max: int) -> NDArray[np.float64]:
    """[k_max] the share of tokens with 1, 2, …, ``k_max`` features: a log-normal number, rounded and clipped.

    Args:
        k: the mean of the result, 1 < k < k_max; the median is solved for it.
        spread: standard deviation of the logarithm.
    """
    edges = torch.log(torch.arange(1, k_max, dtype=torch.float64) + 0.5)  # between n and n + 1
    low, high = float(edges[0]) - 40 * spread, float(edges[-1]) + 40 * spread
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mean = k_max - float(torch.special.ndtr((edges - middle) / spread).sum())
        low, high = (middle, high) if mean < k else (low, middle)
    up_to = torch.special.ndtr((edges - high) / spread).numpy()
    return np.diff(up_to, prepend=0.0, append=1.0)
