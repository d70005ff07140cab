"""Budgets: token to k. What a token is allotted, decided from its activation alone.

One file per budget: a frozen config (``kind``) and the ``Budget`` that it builds, both from ``base.py``. A new
file in this folder registers itself; nothing else is edited. ``lesson`` and ``score_map`` are parts of ``ridge``,
``labels`` is one of ``priced``.
"""

from .._folder import import_siblings
from .base import Budget, BudgetConfig
from .constant import Constant, ConstantConfig
from .labels import LabelsConfig
from .learned import Learned, LearnedConfig
from .lesson import LessonConfig
from .priced import Priced, PricedConfig
from .ridge import Ridge, RidgeConfig

__all__ = [
    "Budget",
    "BudgetConfig",
    "Constant",
    "ConstantConfig",
    "LabelsConfig",
    "Learned",
    "LearnedConfig",
    "LessonConfig",
    "Priced",
    "PricedConfig",
    "Ridge",
    "RidgeConfig",
]

import_siblings(__name__, __path__)
