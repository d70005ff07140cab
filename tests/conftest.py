"""Helpers that tests of several rooms share."""

from __future__ import annotations

import os

import pytest
import torch

from apportion.allocators import AllocatorConfig
from apportion.sae import SAE, SAEConfig

# Nothing may be fetched: models and text come from what is installed.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Without a card kernels are interpreted; Triton looks at this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def make_sae(
    config: AllocatorConfig, d_in: int = 24, d_sae: int = 96, seed: int = 0, dtype: torch.dtype = torch.float32
) -> SAE:
    """An SAE with random weights and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, allocator=config))
    sae.initialise(torch.randn(d_in, generator=generator), generator)
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1, generator=generator)
        sae.encoder.weight.add_(0.1 * torch.randn(d_sae, d_in, generator=generator))
    return sae.to(dtype)


def inputs(n: int, d_in: int = 24, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, d_in] Gaussian rows of different lengths, so that rules have something to allocate."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(n, 1, generator=generator) * 2 + 0.2
    return (torch.randn(n, d_in, generator=generator) * lengths).to(dtype)


@pytest.fixture(autouse=True)
def _global_state_untouched():
    """No test leaves another default dtype or gradient mode behind."""
    yield
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
