"""Folders that register their own files: importing the folder imports every module in it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module of ``package`` so that the kinds defined there are known."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
