"""Reading and writing SAEs. One file per format; ``native`` is ours.

A format reads into, or writes from, a frozen ``SAE``; nothing is executed from a file.
"""

from .native import load_sae, save_sae

__all__ = ["load_sae", "save_sae"]
