"""The text that every Python installation carries: help topics and the docstrings of the standard library."""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from pathlib import Path

from ..errors import InvalidInput
from .texts import Document

_SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "__pycache__"}


def installed_text() -> list[Document]:
    """Help topics (``topic:NAME``) and docstrings of library modules (``module:NAME``), sorted by id.

    Nothing is imported: sources are parsed. The same Python gives the same documents.

    Raises: ``InvalidInput`` for an installation without sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = [*_topics(), *_modules(root)]
    if not documents:
        raise InvalidInput(f"the Python at {sys.prefix} carries no sources under {root}; give a text of your own")
    return sorted(documents, key=lambda document: document.id)


def _topics() -> list[Document]:
    spec = importlib.util.find_spec("pydoc_data")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        tree = _parse(Path(place) / "topics.py")
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found = [(_string(key), _string(value)) for key, value in pairs]
                return [Document(f"topic:{key}", value) for key, value in found if key and value.strip()]
    return []


def _modules(root: Path) -> list[Document]:
    documents = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not _SKIPPED.isdisjoint(inside.parts) or inside.parts[0] == "pydoc_data":
            continue
        tree = _parse(path)
        if tree is not None and (text := _docstrings(tree)):
            name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            documents.append(Document(f"module:{name}", text))
    return documents


def _docstrings(tree: ast.Module) -> str:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in found if text and text.strip())


def _parse(path: Path) -> ast.Module | None:
    # Some installations carry sources of other versions, or in other encodings, as test data.
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _string(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
