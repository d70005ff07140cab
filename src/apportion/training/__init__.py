"""Training: many SAEs on one stream of activations, resumable to the bit.

``step`` is one optimiser step of one SAE, ``trainer`` the loop over the stream, ``checkpoint`` what survives a
kill, ``finish`` turns a trained SAE into a frozen one, ``missed`` says where that is not at k, ``scored`` gives a
stream the scores of its texts, ``log`` takes records to files and services. A new log service is a ``Sink`` in
``log.py``; nothing here knows any rule by name.
"""

from .configs import RunConfig, TrainConfig
from .scored import with_scores
from .step import Run, train_step
from .trainer import train

__all__ = ["Run", "RunConfig", "TrainConfig", "train", "train_step", "with_scores"]
