"""What an activation goes through before the dictionary sees it, and how its reconstruction comes back.

A transform is a named part of an SAE (``SAEConfig.transform``): it is trained with it, folded into the weights
where it can be, saved and loaded. ``none`` is the default, ``mean`` folds away, ``layer_norm`` and ``unit`` are
computed anew for every token, and what undoes them travels with the ``Code``.

To add one: a file here with a config (``kind``, ``build``) and a ``Transform``, an import below, and a test in
``tests/transforms``; the laws there run over every registered kind.
"""

from .base import Transform, TransformConfig
from .layer_norm import LayerNormConfig
from .mean import MeanConfig
from .none import NoTransformConfig
from .unit import UnitConfig

__all__ = [
    "LayerNormConfig",
    "MeanConfig",
    "NoTransformConfig",
    "Transform",
    "TransformConfig",
    "UnitConfig",
]
