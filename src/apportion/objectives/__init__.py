"""Objectives: what a dictionary is trained for, besides the terms that a rule brings itself.

One file per loss: a frozen config (``kind``) and the ``Objective`` that it builds, both from ``base.py``. A new
file in this folder registers itself; nothing else is edited.
"""

from .._folder import import_siblings
from .aux_k import AuxK, AuxKConfig
from .aux_zipf import AuxZipf, AuxZipfConfig
from .base import Objective, ObjectiveConfig
from .l1 import L1, L1Config
from .nested import Nested, NestedConfig, Sampled
from .reconstruction import Reconstruction, ReconstructionConfig
from .sparsity import Sparsity, SparsityConfig

__all__ = [
    "L1",
    "AuxK",
    "AuxKConfig",
    "AuxZipf",
    "AuxZipfConfig",
    "L1Config",
    "Nested",
    "NestedConfig",
    "Objective",
    "ObjectiveConfig",
    "Reconstruction",
    "ReconstructionConfig",
    "Sampled",
    "Sparsity",
    "SparsityConfig",
]

import_siblings(__name__, __path__)
