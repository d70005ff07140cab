"""Complexity: text to score. How hard a text is, by a formula, a language model, a judge or people.

One file per way of scoring: a frozen config (``kind``) and the ``Scorer`` that it builds, both from ``base.py``.
A new file in this folder registers itself, ``tests/complexity/test_scorers.py`` runs the laws over it, and
``apportion score --scorer KIND`` finds it; nothing else is edited. ``scores`` is the file that scores are kept
in and the way back from it to texts; ``endpoint``, ``pace`` and ``answers`` are what a judge on a server needs;
``probe`` asks how linear scores are in activations. No model is loaded here: one that is needed is handed in.
"""

from .._folder import import_siblings
from .base import LanguageModel, Scored, Scorer, ScorerConfig, Text, Tools
from .column import Column, ColumnConfig
from .llm import Judge, JudgeConfig
from .readability import Readability, ReadabilityConfig
from .scores import Scores, ScoreScale, fit_scale, load_scores, save_scores
from .surprisal import Surprisal, SurprisalConfig, token_losses

__all__ = [
    "Column",
    "ColumnConfig",
    "Judge",
    "JudgeConfig",
    "LanguageModel",
    "Readability",
    "ReadabilityConfig",
    "ScoreScale",
    "Scored",
    "Scorer",
    "ScorerConfig",
    "Scores",
    "Surprisal",
    "SurprisalConfig",
    "Text",
    "Tools",
    "fit_scale",
    "load_scores",
    "save_scores",
    "token_losses",
]

import_siblings(__name__, __path__)
