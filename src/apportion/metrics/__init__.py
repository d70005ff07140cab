"""Measures of a sparse autoencoder on held-out activations, each defined once.

What belongs here: an accumulator that sees blocks of tokens and ends in a few JSON numbers. It keeps sums,
never tokens; it sums in float64 or in integers; it knows no model, no file and no other measure. What two
measures share is in ``base``.

How to add one: a file here with a ``Metric`` (``update`` for a block, ``result`` for the numbers), a test
in ``tests/metrics`` against a naive float64 reference, and, if every evaluation should report it, one entry
in ``apportion.evaluate``. ``downstream``, ``baselines``, ``correlation``, ``adaptivity``, ``dimension``,
``probing`` and ``truth`` measure other things than a block of codes (the logits of a patched model, a linear
projection, numbers per token, labels of documents, a known dictionary) and so have ``update`` methods and
functions of their own shape. ``intervals`` says how surely.
"""

from .adaptivity import Bin, Classes, Covariate, Relation, relations
from .base import Codec, Json, Metric, MetricBatch, device_of
from .baselines import Pca, fit_pca, pca_fvu
from .concentration import Concentration, dominated, top_share
from .correlation import spearman
from .dimension import local_dimension
from .documents import PerDocument
from .downstream import CausalDownstream, EncoderDownstream
from .features import FeatureDensity, Silence
from .importance import MonotonicImportance
from .intervals import Interval
from .oracle import Oracle
from .probing import DocumentMeans, SparseProbe, sparse_probe
from .reconstruction import Reconstruction
from .sparsity import Sparsity
from .truth import recovered

__all__ = [
    "Bin",
    "CausalDownstream",
    "Classes",
    "Codec",
    "Concentration",
    "Covariate",
    "DocumentMeans",
    "EncoderDownstream",
    "FeatureDensity",
    "Interval",
    "Json",
    "Metric",
    "MetricBatch",
    "MonotonicImportance",
    "Oracle",
    "Pca",
    "PerDocument",
    "Reconstruction",
    "Relation",
    "Silence",
    "SparseProbe",
    "Sparsity",
    "device_of",
    "dominated",
    "fit_pca",
    "local_dimension",
    "pca_fvu",
    "recovered",
    "relations",
    "sparse_probe",
    "spearman",
    "top_share",
]
