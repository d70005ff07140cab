"""The laws of every rule. A rule registers itself in ``allocators/`` and is run through all of them.

A rule from outside the package passes them with ``laws.check_all(config)``; see ``tests/laws.py``.
"""

from __future__ import annotations

import pytest

from apportion.allocators import AllocatorConfig

from . import laws

RULES = sorted(AllocatorConfig.members)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", RULES)
def test_law(kind, law):
    config = AllocatorConfig.members[kind].for_k(laws.K)
    law(config)
