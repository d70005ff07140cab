"""Sparse autoencoders that give each input the features it needs.

import apportion as ap

sae = ap.load("runs/mutual_choice-k32")   # frozen, calibrated, takes raw activations
code = sae.encode(x)                      # x: [..., d_in] -> Code, ragged and sparse
x_hat = sae.decode(code)
ap.train(configs, source, out)            # many SAEs on one stream
ap.evaluate(sae, source)                  # the measures, on held-out tokens
ap.compare(saes, source)                  # methods at equal measured L0, with intervals
ap.calibrate(sae.prefix(n), source)       # the first n features, meeting k again
"""

from importlib.metadata import version

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

__version__ = version("apportion")

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
