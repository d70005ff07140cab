"""How much each token wants each feature, behind questions instead of a tensor.

A rule asks for the largest entries per row or per batch, or those above a threshold, gets pairs, and asks for
their differentiable values. Which implementation answers is not the rule's business.

``base`` is the contract. A new implementation is one file with a subclass of ``Affinities`` and a line in
``tests/affinities/``, where all give the answers of ``DenseAffinities``; ``build`` says which one a step gets.
"""

from ..ops.above import Everything, Pairs
from .base import Affinities, Ordered, Scope
from .build import WHOLE, EncoderConfig, affinities_of
from .chunked import ChunkedAffinities
from .dense import DenseAffinities
from .screened import ScreenedAffinities
from .settled import SettledAffinities
from .survey import FOLDS, Part, Rows, Survey

__all__ = [
    "FOLDS",
    "WHOLE",
    "Affinities",
    "ChunkedAffinities",
    "DenseAffinities",
    "EncoderConfig",
    "Everything",
    "Ordered",
    "Pairs",
    "Part",
    "Rows",
    "Scope",
    "ScreenedAffinities",
    "SettledAffinities",
    "Survey",
    "affinities_of",
]
