"""Pre-activations at chosen (token, feature) pairs: ``reference`` in dense form, ``fast`` pair by pair."""

from .fast import encode_at
from .reference import encode_at_reference

__all__ = ["encode_at", "encode_at_reference"]
