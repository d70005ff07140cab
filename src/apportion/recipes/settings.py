"""Changes to a recipe's config, in the words of the command line: ``RECIPE.FIELD=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InvalidConfig
from ..files import from_json
from ..training import RunConfig
from .base import with_price


def adjusted(config: RunConfig, recipe: str, settings: Sequence[str], recipes: Sequence[str]) -> RunConfig:
    """The config with those settings put in that name ``recipe``, validated as a whole.

    A rule that is held to k by a price brings the objective that sets it and the start that goes with it, unless
    objectives are set too.

    Args:
        settings: such as ``soft_sae.allocator.hard=0.2``; values are JSON, or text where they are not.
        recipes: every recipe that a setting may name.

    Raises:
        InvalidConfig: a setting has another form, names no recipe or field there is, or does not validate.
    """
    data: dict[str, Any] = config.model_dump(mode="json")
    for setting in settings:
        path, equals, value = setting.partition("=")
        head, _, rest = path.strip().partition(".")
        if not equals or not rest:
            raise InvalidConfig(f"--set {setting!r} is not of the form RECIPE.FIELD=VALUE")
        if head == recipe:
            _assign(data, rest, value, setting)
        elif head not in recipes:
            raise InvalidConfig(f"--set {setting!r} names {head!r}, which is not in --recipe {','.join(recipes)}")
    made = RunConfig.parse(data, f"recipe {recipe}")
    if made.objectives != config.objectives:
        return made
    priced = with_price(made)
    own_start = any(setting.partition("=")[0].strip() == f"{recipe}.b_enc" for setting in settings)
    return priced.model_copy(update={"b_enc": made.b_enc}) if own_start else priced


def _assign(data: dict[str, Any], path: str, value: str, setting: str) -> None:
    """Put a value at a dotted path; ``allocator`` is short for ``sae.allocator``."""
    keys = path.split(".")
    if keys[0] == "allocator":
        keys.insert(0, "sae")
    for key in keys[:-1]:
        data = data.get(key) if isinstance(data, dict) else None  # type: ignore[assignment]
    if not isinstance(data, dict):
        raise InvalidConfig(f"--set {setting!r}: there is no group '{'.'.join(keys[:-1])}' in that recipe")
    try:
        data[keys[-1]] = from_json(value)
    except ValueError:
        data[keys[-1]] = value
