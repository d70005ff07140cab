"""Squared errors of all prefixes of a dictionary: ``reference`` decodes each anew, ``fast`` every entry once,
``whole`` a code that is held as a matrix."""

from .fast import nested_error
from .reference import nested_error_reference

__all__ = ["nested_error", "nested_error_reference"]
