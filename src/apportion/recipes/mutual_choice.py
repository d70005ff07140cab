"""Mutual Choice (Ayonrinde 2024, arXiv 2411.02124), also known as BatchTopK (arXiv 2412.06410), with aux-k."""

from __future__ import annotations

from functools import partial

from .base import Recipe, plain, register

register(Recipe("mutual_choice", partial(plain, "mutual_choice"), "arXiv 2411.02124", ("batch_topk",)))
