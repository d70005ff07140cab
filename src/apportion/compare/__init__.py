"""Methods beside one another: the same held-out tokens, equal measured L0, paired by seed.

What belongs here: what follows from evaluations of many SAEs. ``origin`` says which method an SAE is and whether
a source can measure it fairly, ``fronts`` reads between two points, ``summary`` puts the two together with
intervals, ``compare`` measures, ``tables`` prints. Measures themselves live in ``metrics``.
"""

from ..metrics.intervals import Interval
from .base import Comparison, Difference, Level, Measured, Point
from .compare import compare
from .origin import Seed
from .tables import from_json, to_csv, to_json, to_markdown

__all__ = [
    "Comparison",
    "Difference",
    "Interval",
    "Level",
    "Measured",
    "Point",
    "Seed",
    "compare",
    "from_json",
    "to_csv",
    "to_json",
    "to_markdown",
]
