"""Recipes: the name of a paper's method to the full config of a run.

One file per recipe, which registers a ``Recipe``. A new file in this folder registers itself; a rule from outside
the package needs none (``apportion train --recipe KIND`` takes its defaults).
"""

from .._folder import import_siblings
from .base import Published, Recipe, find_recipe, recipe_names, register
from .settings import adjusted

__all__ = ["Published", "Recipe", "adjusted", "find_recipe", "recipe_names", "register"]

import_siblings(__name__, __path__)
