"""What commands have in common: JSON or a table on standard output, lists in arguments, plug-ins."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import ApportionError, ApportionWarning, InvalidConfig, StorageFailure, UnknownName
from ..files import what_is
from ..progress import Shown
from ..training.caveats import MARK, marked


def show(rows: Sequence[Mapping[str, Any]], as_json: bool, columns: Sequence[str] | None = None) -> None:
    """Print rows as a JSON list, or as a table of their numbers and words.

    A row with ``caveats`` is marked in the table, and its sentences stand below.
    """
    if as_json:
        put(json.dumps(list(rows), indent=1) + "\n")
        return
    names = list(columns or _shown(rows))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    for line, row in zip(cells[1:], rows, strict=True):
        line[0] = marked(line[0], row.get("caveats", ()))
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip() + "\n")
    caveats = dict.fromkeys(sentence for row in rows for sentence in row.get("caveats", ()))
    put("".join([*lines, *(f"{MARK} {escaped(sentence, keep='')}\n" for sentence in caveats)]))


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of the first row that stand for a number or a word, or for one that is not known."""
    return [key for key, value in rows[0].items() if value is None or isinstance(value, (int, float, str))]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return escaped(str(value), keep="")
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def say(message: str) -> None:
    """A line for the person at the terminal, on standard error; nobody hears it where that is closed or full."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(escaped(message) + "\n")
        sys.stderr.flush()


def put(text: str) -> None:
    """Write a result to standard output, whatever its encoding.

    Raises: ``StorageFailure`` where it cannot be written, ``BrokenPipeError`` where nobody reads it any more.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with _standard_output():
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    flush()


def flush() -> None:
    """See that what was written to standard output has left this process. Raises as ``put`` does."""
    with _standard_output():
        sys.stdout.flush()


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageFailure(f"cannot write to standard output: {reason}; send it to a file with room") from None


def escaped(text: str, keep: str = "\n\t") -> str:
    r"""``text`` with everything that a terminal would obey, but for ``keep``, as a visible escape.

    >>> escaped("runs/\x1b[31mred")
    'runs/\\x1b[31mred'
    """
    return "".join(
        character if character in keep or _harmless(character) else _escape(character) for character in text
    )


def _harmless(character: str) -> bool:
    # Control, format (which may turn the direction of writing), surrogate, private, unassigned; line ends.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


class EscapedStderr(io.TextIOBase):
    """Standard error for the messages of others: what a terminal would obey arrives as a visible escape."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(escaped(text))
            self._stream.flush()
        return len(text)


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
            if issubclass(category, ApportionWarning):
                say(str(message))
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show_one
        warnings.simplefilter("always", ApportionWarning)
        yield


def shown_here() -> Shown:
    """How long jobs show their progress: as a bar at a terminal, as lines elsewhere."""
    return True if sys.stderr.isatty() else "lines"


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
        except SystemExit as error:
            raise InvalidConfig(
                f"--plugin {plugin} ends the process when imported (SystemExit: {error.code}); correct its code"
            ) from None
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
