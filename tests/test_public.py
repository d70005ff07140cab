"""The public surface: what a user imports, and what the package promises of itself."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import apportion as ap

SOURCE = Path(ap.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages([str(SOURCE)], "apportion.") if not m.name.endswith("__main__")]


def test_the_names_of_the_first_day():
    for name in ("load", "train", "evaluate", "Code", "SAE", "SAEConfig", "RunConfig", "TrainConfig"):
        assert hasattr(ap, name)
    assert sorted(ap.__all__) == sorted(set(ap.__all__))
    assert all(hasattr(ap, name) for name in ap.__all__)


def imported(name: str):
    if name.startswith("apportion.ops.kernels."):
        pytest.importorskip("triton", reason="Triton is not installed")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_public_definition_says_what_it_is(name):
    module = imported(name)
    assert module.__doc__, f"{name} has no docstring"
    for node in ast.parse(Path(module.__file__ or "").read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(imported(name)).failed == 0


def test_nothing_in_the_package_prints_or_unpickles():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "eval", "exec", "torch.load", "pickle.load", "pickle.loads"), path
