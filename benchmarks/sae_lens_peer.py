"""sae-lens, trained by its own trainer on our batches from our weights, measured as its users would use it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import sae_lens
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

import apportion as ap


class Peer:
    """A trained SAE of sae-lens in its inference form; what ``ap.evaluate`` asks for.

    Args:
        sae: takes activations times ``scale``.
    """

    def __init__(self, sae: sae_lens.SAE[Any], scale: float) -> None:
        self.sae, self.scale = sae, scale

    @property
    def d_in(self) -> int:
        return self.sae.cfg.d_in

    @property
    def d_sae(self) -> int:
        return self.sae.cfg.d_sae

    def encode(self, x: Tensor) -> ap.Code:
        return ap.Code.from_dense(self.sae.encode(x * self.scale))

    def decode(self, code: ap.Code) -> Tensor:
        return self.sae.decode(code.to_dense()) / self.scale


def train_peer(
    architecture: str,
    initial: ap.SAE,
    batches: Iterator[Tensor],
    scale: float,
    sae: Mapping[str, Any],
    trainer: Mapping[str, Any],
) -> Peer:
    """Their training, start to end, and their inference form by way of the disk, as they save and load it.

    Args:
        architecture: a name of their registry.
        initial: its weights are copied.
        batches: [n, d_in] activations; multiplied by ``scale`` here.
        sae, trainer: fields of their configs; all others stay as sae-lens has them.
    """
    training = initialised(architecture, initial, sae)
    scaled = (x * scale for x in batches)
    SAETrainer(SAETrainerConfig(device="cpu", **trainer), training, scaled).fit()
    with tempfile.TemporaryDirectory() as folder:
        training.save_inference_model(folder)
        return Peer(sae_lens.SAE.load_from_disk(folder, device="cpu").eval(), scale)


def initialised(architecture: str, initial: ap.SAE, settings: Mapping[str, Any]) -> TrainingSAE[Any]:
    """Their SAE with our weights. All biases of encoders start at zero on both sides."""
    sae_class, config_class = get_sae_training_class(architecture)
    shape = {"d_in": initial.d_in, "d_sae": initial.d_sae, "dtype": "float32", "device": "cpu"}
    peer = sae_class(config_class(**shape, **settings))
    assert not initial.b_enc.any()
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_dec"):
            getattr(peer, name).copy_(getattr(initial, name))
    return peer
