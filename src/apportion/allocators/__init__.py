"""Allocators: affinities to code. Which features a token gets is decided here and nowhere else.

One file per rule: a frozen config (``kind``) and the ``Allocator`` that it builds, both from ``base.py``. A new
file in this folder registers itself and ``tests/test_laws.py`` runs over it; nothing else is edited.
"""

from .._folder import import_siblings
from .base import Allocation, Allocator, AllocatorConfig, code_at
from .feature_choice import FeatureChoice, FeatureChoiceConfig
from .feature_threshold import FeatureThreshold, FeatureThresholdConfig
from .gate import Gate, GateConfig
from .gated import Gated, GatedConfig
from .jump_relu import JumpReLU, JumpReLUConfig
from .mutual_choice import MutualChoice, MutualChoiceConfig
from .relu import ReLU, ReLUConfig
from .scaled_thresholds import ScaledThresholds, ScaledThresholdsConfig
from .soft_top_k import SoftTopK, SoftTopKConfig
from .threshold import Threshold, ThresholdConfig
from .token_choice import TokenChoice, TokenChoiceConfig

__all__ = [
    "Allocation",
    "Allocator",
    "AllocatorConfig",
    "FeatureChoice",
    "FeatureChoiceConfig",
    "FeatureThreshold",
    "FeatureThresholdConfig",
    "Gate",
    "GateConfig",
    "Gated",
    "GatedConfig",
    "JumpReLU",
    "JumpReLUConfig",
    "MutualChoice",
    "MutualChoiceConfig",
    "ReLU",
    "ReLUConfig",
    "ScaledThresholds",
    "ScaledThresholdsConfig",
    "SoftTopK",
    "SoftTopKConfig",
    "Threshold",
    "ThresholdConfig",
    "TokenChoice",
    "TokenChoiceConfig",
    "code_at",
]

import_siblings(__name__, __path__)
