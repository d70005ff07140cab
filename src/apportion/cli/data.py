"""Where a command's texts come from: files, patterns, data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..activations.texts import Documents, Paths, iter_documents
from ..errors import InvalidConfig, without_secrets


def documents_of(
    data: Sequence[str],
    what: str = "--data",
    *,
    text_field: str = "text",
    target_field: str | None = None,
    read_target: Callable[[Any], float | None] | None = None,
    strict: bool = False,
    whole: bool = False,
    streaming: bool = False,
) -> Documents:
    """The documents of all that ``data`` names, as ``iter_documents`` reads them.

    Args:
        what: the option that names them, for the error. Raises ``InvalidConfig`` if it names nothing.
    """
    if not data or not all(data):
        raise InvalidConfig(f"{what} names nothing; give a file, a folder or a data set, one or more")
    return iter_documents(
        data[0] if len(data) == 1 else Paths(tuple(data)),
        text_field=text_field,
        target_field=target_field,
        read_target=read_target,
        strict=strict,
        whole=whole,
        streaming=streaming,
    )


def named(data: Sequence[str]) -> str | list[str]:
    """``data`` as JSON: what was given, one name or several, without the passwords and keys of addresses."""
    names = [without_secrets(name) for name in data]
    return names[0] if len(names) == 1 else names
