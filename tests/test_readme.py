"""The rule that the README shows keeps every law."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from . import laws

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def mine() -> types.ModuleType:
    program = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "mine.py" in block)
    module = types.ModuleType("mine")
    sys.modules["mine"] = module
    exec(compile(program, "mine.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_the_rule_in_the_readme_keeps_the_laws(mine, law):
    law(mine.MineConfig.for_k(laws.K))
