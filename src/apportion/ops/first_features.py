"""State of a module with an entry per feature, cut down to its first features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def first_features(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors of ``state``, each narrowed from its start to the shape of its namesake in ``like``.

    ``like`` is the state of the same module built for fewer features, which is how one knows what is per feature.
    """
    cut = {}
    for name, value in state.items():
        for dim, size in enumerate(like[name].shape):
            value = value.narrow(dim, 0, size)
        cut[name] = value.detach().clone()
    return cut
