"""Every error and warning that a user can meet. A message gives the value, what was expected and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_USER = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"([?&;][^\s=&;]*(?:key|token|secret|passw|credential|auth|sig)[^\s=&;]*=)[^\s&;'\")]+", re.I)


def without_secrets(text: str) -> str:
    """``text`` with the passwords and keys that addresses in it carry as ``***``.

    >>> without_secrets("http://user:secret@host/v1?api-key=secret&page=2")
    'http://***@host/v1?api-key=***&page=2'
    """
    return _QUERY.sub(r"\1***", _USER.sub("***@", text))


class ApportionError(Exception):
    """Base of all errors raised on purpose; the command line prints its message and exits with status 2.

    A message repeats no password or key of an address that it names.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_secrets(part) if isinstance(part, str) else part for part in parts))


class InvalidConfig(ApportionError, ValueError):
    """A setting is out of range, unknown or contradicts another."""


class InvalidInput(ApportionError, ValueError):
    """A tensor or text handed in has the wrong shape, type or content."""


class UnknownName(ApportionError, LookupError):
    """A model, module, recipe or kind that is not known here."""


class MissingExtra(ApportionError, ImportError):
    """An optional library is not installed."""


class CorruptStore(ApportionError):
    """A shard of a store is damaged or its manifest does not match it."""


class NonFiniteActivations(ApportionError, ValueError):
    """An activation is NaN or infinite."""


class StorageFailure(ApportionError, OSError):
    """Reading or writing failed: disk full, no permission, path taken."""


class InvalidCheckpoint(ApportionError):
    """A checkpoint or saved SAE cannot be read by this version or is damaged."""


class TrainingDiverged(ApportionError, ArithmeticError):
    """A loss became NaN or infinite."""


class EndpointFailure(ApportionError, OSError):
    """A server refuses the key, the model or the address, cannot be reached, or asks for too much patience."""


class ApportionWarning(UserWarning):
    """Base of all warnings; the command line prints each as one line on standard error.

    None repeats a password or key of an address, as no error does.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_secrets(part) if isinstance(part, str) else part for part in parts))


class BudgetMissed(ApportionWarning):
    """A training came to its end and the SAE does not spend the k features per token that it was to spend."""


class RunSetAside(ApportionWarning):
    """A run of a training diverged and was set aside; the others went on to their end."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, numpy's, or torch's, which on the CPU raises a plain RuntimeError."""
    words = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """A readable list of the ``n`` entries of ``known`` that look most like ``name``.

    >>> nearest("encoder.layr.3", ["encoder.layer.3", "pooler"])
    "'encoder.layer.3'"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.4)
    return ", ".join(repr(c) for c in close or names[:n]) or "none"
