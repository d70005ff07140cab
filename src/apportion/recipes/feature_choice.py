"""Feature Choice with Zipf quotas and aux-zipf (Ayonrinde 2024, arXiv 2411.02124)."""

from __future__ import annotations

from ..objectives import AuxZipfConfig, ReconstructionConfig
from ..training import RunConfig
from .base import Recipe, plain, register


def make(d_in: int, d_sae: int, k: float, seed: int) -> RunConfig:
    """Quotas along the curve, features woken that cannot fill theirs, and underused ones put to work."""
    run = plain("feature_choice", d_in, d_sae, k, seed)
    allocator = run.sae.allocator.model_copy(update={"wake": 0.1})
    sae = run.sae.model_copy(update={"allocator": allocator})
    return run.model_copy(update={"sae": sae, "objectives": (ReconstructionConfig(), AuxZipfConfig())})


register(Recipe("feature_choice", make, "arXiv 2411.02124"))
