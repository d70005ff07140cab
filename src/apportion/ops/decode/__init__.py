"""Sparse code to reconstruction: ``reference`` in dense form, ``fast`` in proportion to the entries."""

from .fast import decode
from .reference import decode_reference

__all__ = ["decode", "decode_reference"]
