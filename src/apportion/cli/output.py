"""What commands have in common: JSON or a table on standard output, lists in arguments, plug-ins."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import ApportionError, BudgetMissed, InvalidConfig, UnknownName
from ..files import what_is


def show(rows: Sequence[Mapping[str, Any]], as_json: bool, columns: Sequence[str] | None = None) -> None:
    """Print rows as a JSON list, or as a table of their numbers and words."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows), indent=1) + "\n")
        return
    names = list(columns or [key for key, value in rows[0].items() if isinstance(value, (int, float, str))])
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        padded = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def say(message: str) -> None:
    """A line for the person at the terminal, on standard error."""
    sys.stderr.write(message + "\n")


@contextlib.contextmanager
def warnings_said() -> Iterator[None]:
    """The package's warnings are lines for the person at the terminal, without a place in the code."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show_one(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, BudgetMissed):
                say(str(message))
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show_one
        warnings.simplefilter("always", BudgetMissed)
        yield


def on_terminal() -> bool:
    """Whether bars make sense."""
    return sys.stderr.isatty()


def names_in(text: str, what: str) -> list[str]:
    """``"a,b"`` to names. Raises ``InvalidConfig`` if there is none."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise InvalidConfig(f"{what} = {text!r} names nothing; give one or more, separated by commas")
    return names


def numbers_in(text: str, what: str) -> list[float]:
    """``"16,32"`` to numbers. Raises ``InvalidConfig`` for anything else."""
    try:
        return [float(part) for part in names_in(text, what)]
    except ValueError:
        raise InvalidConfig(f"{what} = {text!r} is not a list of numbers such as 16,32,64") from None


def integers_in(text: str, what: str) -> list[int]:
    """``"0,1"`` to integers. Raises ``InvalidConfig`` for anything else."""
    try:
        return [int(part) for part in names_in(text, what)]
    except ValueError:
        raise InvalidConfig(f"{what} = {text!r} is not a list of integers such as 0,1,2") from None


def import_plugins(plugins: Sequence[str]) -> None:
    """Import the user's own rules, each a ``.py`` file or a module name. This runs their code."""
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            raise UnknownName(f"--plugin {plugin}: {error}; give a module name or a .py file") from None
        except ApportionError as error:
            raise type(error)(f"--plugin {plugin}: {error}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise InvalidConfig(f"--plugin {plugin} fails when imported ({reason}); correct its code") from error


def _import_file(path: Path) -> None:
    if what_is(path) != "file":
        raise UnknownName("there is no such file; give the path of a .py file")
    name = f"apportion_plugin_{path.stem}"  # a plug-in called random.py must not replace Python's own
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks names up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
