"""Objectives: what a dictionary is trained for, besides the terms that a rule brings itself.

One file per loss: a frozen config (``kind``) and the ``Objective`` that it builds, both from ``base.py``. A new
file in this folder registers itself; nothing else is edited.
"""

from .._folder import import_siblings
from .aux_k import AuxK, AuxKConfig
from .aux_zipf import AuxZipf, AuxZipfConfig
from .base import Objective, ObjectiveConfig
from .reconstruction import Reconstruction, ReconstructionConfig

__all__ = [
    "AuxK",
    "AuxKConfig",
    "AuxZipf",
    "AuxZipfConfig",
    "Objective",
    "ObjectiveConfig",
    "Reconstruction",
    "ReconstructionConfig",
]

import_siblings(__name__, __path__)
