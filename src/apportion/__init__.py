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

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._public import *  # noqa: F403

    __version__: str


class _Package(ModuleType):
    """This package. Its public names, which take seconds to import, are loaded when the first is asked for.

    So ``import apportion`` does no work, and the command line can say a word about what happens meanwhile.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version(__name__)
        if name == "__all__" or not name.startswith("_"):
            public = import_module("._public", __name__)
            if name == "__all__" or name in getattr(public, "__all__", ()):  # not there while it is being loaded
                return vars(self).setdefault(name, getattr(public, name))
            if name in vars(self):  # a module that came with them
                return vars(self)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})

    def __setattr__(self, name: str, value: Any) -> None:
        # Some functions have the names of their modules, and Python puts a module here once it is loaded.
        if not (isinstance(value, ModuleType) and name in ("calibrate", "compare", "evaluate")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
