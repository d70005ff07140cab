"""Whether files of an SAE or a checkpoint say what they should: a checksum tells only that bytes are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_OBJECTS = (
    *("source", "source.tokens", "training", "training.config", "training.settings", "training.sparsity"),
    *("calibration", "cut_from", "cut_from.calibration"),
)
_NUMBERS = {
    "source.tokens": ("outliers", "norm_bound", "left_out"),
    "training": (*("l0_train", "fvu_train", "dead", "never_fired", "tokens", "tokens_per_s", "steps", "scale"),),
    "calibration": ("k", "l0", "l0_se", "l0_fitted", "short", "lift", "fvu_before", "fvu"),
    "cut_from.calibration": ("lift",),
}
"""By the object that they stand in; each may be null, where it is not known."""


def tensors_fault(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What is wrong with tensors that are to take the place of others, in words.

    Names, shapes and types are those of ``expected``, and no value is NaN, which no rule or weight ever is.
    """
    if missing := sorted(expected.keys() - found.keys()):
        return f"the tensor {missing[0]!r} is missing"
    if unknown := sorted(found.keys() - expected.keys()):
        return f"the tensor {unknown[0]!r} does not belong there"
    for name, wanted in expected.items():
        tensor = found[name]
        if tensor.shape != wanted.shape:
            return f"{name!r} has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
        if tensor.dtype != wanted.dtype:
            return f"{name!r} is of type {tensor.dtype}, expected {wanted.dtype}"
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            return f"{name!r} holds a NaN"
    return None


def infinite_fault(found: Mapping[str, Tensor]) -> str | None:
    """The first tensor with an entry that is not finite, in words."""
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name!r} is not finite"
    return None


def metadata_fault(metadata: Any) -> str | None:
    """What is wrong with those parts of an SAE's metadata that are read, in words; others may be anything."""
    if not isinstance(metadata, dict):
        return f"its metadata are a {type(metadata).__name__}, expected an object"
    for path in _OBJECTS:  # an object comes before what is in it
        if not isinstance(told := _at(metadata, path), dict):
            return f"its metadata say {path} = {told!r:.60}, expected an object"
    for path, names in _NUMBERS.items():
        for name, value in _at(metadata, path).items():
            if name in names and not (value is None or _is_number(value)):
                return f"its metadata say {path}.{name} = {value!r:.60}, expected a number"
    source, tokens = metadata.get("source", {}), _at(metadata, "calibration").get("tokens", 1)
    heldout, seed = source.get("heldout", 0), source.get("split_seed", 0)
    if not (_is_number(heldout) and 0 <= heldout < 1):
        return f"its metadata say source.heldout = {heldout!r:.60}, expected a share below 1"
    if type(seed) is not int:
        return f"its metadata say source.split_seed = {seed!r:.60}, expected a whole number"
    if type(tokens) is not int or tokens < 1:
        return f"its metadata say calibration.tokens = {tokens!r:.60}, expected a number of tokens"
    return None


def _at(metadata: dict[str, Any], path: str) -> Any:
    """What stands at a dotted path; an object without anything where nothing does."""
    place: Any = metadata
    for key in path.split("."):
        place = place.get(key, {})
    return place


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
