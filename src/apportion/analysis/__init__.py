"""What an SAE does with its budget on a source, and what single features of it tell about a document.

``tokens`` reads a held-out part with one SAE and sets k beside what it may follow; ``rows`` has what tokens are
by themselves, the same for every SAE; ``probes`` asks features for the label of a document; ``reading`` says
which rows of a part are read.
"""

from .probes import RowSource, labels_of, register_probes
from .rows import dimensions, surprisals
from .tokens import Tokens, adaptivity

__all__ = [
    "RowSource",
    "Tokens",
    "adaptivity",
    "dimensions",
    "labels_of",
    "register_probes",
    "surprisals",
]
