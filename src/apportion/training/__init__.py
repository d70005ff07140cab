"""Training: many SAEs on one stream of activations, resumable to the bit.

``step`` is one optimiser step of one SAE, ``trainer`` the loop over the stream, ``checkpoint`` what survives a
kill, ``aside`` what is kept of a run that diverged, ``finish`` turns a trained SAE into a frozen one,
``missed`` says where that is not at k, ``caveats`` all that is to be known before its numbers are believed,
``scored`` gives a stream the scores of its texts, ``tally`` makes records and ``log`` takes them to files and
services. A new log service is a ``Sink`` in ``log.py``, a new caveat a function in ``caveats.py``; nothing here
knows any rule by name.
"""

from .caveats import caveats
from .configs import RunConfig, TrainConfig
from .scored import with_scores
from .step import Run, train_step
from .trainer import train

__all__ = ["Run", "RunConfig", "TrainConfig", "caveats", "train", "train_step", "with_scores"]
