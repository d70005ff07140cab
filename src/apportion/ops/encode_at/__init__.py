"""Pre-activations at pairs: ``reference`` in dense form, ``fast`` pair by pair, ``whole`` at all of them."""

from .fast import encode_at
from .reference import encode_at_reference
from .whole import encode_whole

__all__ = ["encode_at", "encode_at_reference", "encode_whole"]
