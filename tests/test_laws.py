"""The laws of every rule. A rule registers itself in ``allocators/`` and is run through all of them.

A rule from outside the package passes them with ``laws.check_all(config)``; see ``tests/laws.py``.
"""

from __future__ import annotations

import pytest

from apportion.allocators import (
    AllocatorConfig,
    FeatureChoiceConfig,
    ReLUConfig,
    SoftTopKConfig,
    TokenChoiceConfig,
)
from apportion.budgets import LearnedConfig
from apportion.schedules import Linear

from . import laws

RULES = {kind: rule.for_k(laws.K) for kind, rule in sorted(AllocatorConfig.members.items())}
SETTINGS = {
    "token_choice, learned": TokenChoiceConfig(budget=LearnedConfig(k=laws.K, estimator="own")),
    "soft_top_k, own": SoftTopKConfig(
        budget=LearnedConfig(k=laws.K, estimator="own"), alpha=0.1, floor=1e-3, through_rank=True
    ),
    "soft_top_k, linear": SoftTopKConfig(budget=LearnedConfig(k=laws.K, estimator="linear"), hard=0.5),
    "feature_choice, uniform": FeatureChoiceConfig(k=laws.K, quotas="uniform", warmup=0),
    "feature_choice, often": FeatureChoiceConfig(k=laws.K, warmup=0.2, refresh_every=2),
    "relu, annealed": ReLUConfig(k=laws.K, p=Linear(start=1.0, end=0.2)),
}
"""Other settings of rules that laws should see."""


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("rule", [*RULES, *SETTINGS])
def test_law(rule, law):
    law({**RULES, **SETTINGS}[rule])
