"""TopK as in Gao et al. 2024 (arXiv 2406.04093): k per token, aux-k, decoder of unit norm."""

from __future__ import annotations

from functools import partial

from .base import Recipe, plain, register

register(Recipe("token_choice", partial(plain, "token_choice"), "arXiv 2406.04093", ("topk",)))
