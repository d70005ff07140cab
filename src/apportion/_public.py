"""The public names, and what they take to import. ``apportion/__init__.py`` loads this when one is asked for."""

from .activations import (
    LiveSource,
    Source,
    StoreSource,
    StreamedSource,
    SyntheticConfig,
    SyntheticSource,
    TensorSource,
)
from .affinities import Affinities, Ordered, Pairs
from .allocators import Allocation, Allocator, AllocatorConfig, code_at
from .budgets import Budget, BudgetConfig
from .calibrate import calibrate
from .clock import END, Clock
from .code import Code
from .compare import compare
from .errors import ApportionError
from .evaluate import evaluate
from .firing import Firing
from .io import load_sae as load
from .io import save_sae as save
from .objectives import Objective, ObjectiveConfig
from .recipes import find_recipe as recipe
from .sae import SAE, SAEConfig
from .trace import Dictionary, Trace
from .training import RunConfig, TrainConfig, train, with_scores

__all__ = [
    "END",
    "SAE",
    "Affinities",
    "Allocation",
    "Allocator",
    "AllocatorConfig",
    "ApportionError",
    "Budget",
    "BudgetConfig",
    "Clock",
    "Code",
    "Dictionary",
    "Firing",
    "LiveSource",
    "Objective",
    "ObjectiveConfig",
    "Ordered",
    "Pairs",
    "RunConfig",
    "SAEConfig",
    "Source",
    "StoreSource",
    "StreamedSource",
    "SyntheticConfig",
    "SyntheticSource",
    "TensorSource",
    "Trace",
    "TrainConfig",
    "calibrate",
    "code_at",
    "compare",
    "evaluate",
    "load",
    "recipe",
    "save",
    "train",
    "with_scores",
]
