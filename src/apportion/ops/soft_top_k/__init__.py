"""The differentiable top-k of SoftSAE: weights in [0, 1] that sum to a real k per row.

``reference`` sorts every row; ``fast`` gives the dense weights and ``pairs`` the few that matter, both from the
``threshold``, which is exact at any temperature and handles some 2k entries of a row one by one.
On a card ``card`` has kernels do both; ``entries`` is the operation that either way of weighing goes through.
"""

from .fast import soft_top_k
from .pairs import SoftPairs, soft_pairs, weights_at
from .reference import soft_top_k_gradients_reference, soft_top_k_reference

__all__ = [
    "SoftPairs",
    "soft_pairs",
    "soft_top_k",
    "soft_top_k_gradients_reference",
    "soft_top_k_reference",
    "weights_at",
]
