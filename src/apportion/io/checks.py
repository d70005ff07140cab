"""Whether files of an SAE or a checkpoint say what they should: a checksum tells only that bytes are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SHARES = ("heldout",)
_COUNTS = ("split_seed",)
_GROUPS = ("source", "training", "calibration", "cut_from")
_NUMBERS = {
    "training": ("l0_train", "fvu_train", "dead", "tokens", "tokens_per_s", "steps", "scale"),
    "calibration": ("l0", "short"),
}
_WITHIN = {"training": ("config", "settings"), "cut_from": ("calibration",)}


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
    for group in _GROUPS:
        told = metadata.get(group, {})
        if not isinstance(told, dict):
            return f"its metadata say {group} = {told!r:.60}, expected an object"
        for name in _WITHIN.get(group, ()):
            if not isinstance(told.get(name, {}), dict):
                return f"its metadata say {group}.{name} = {told[name]!r:.60}, expected an object"
        for name in _NUMBERS.get(group, ()):
            if not (told.get(name) is None or _is_number(told[name])):
                return f"its metadata say {group}.{name} = {told[name]!r:.60}, expected a number"
    source = metadata.get("source", {})
    for name in _SHARES:
        if name in source and not (_is_number(source[name]) and 0 <= source[name] < 1):
            return f"its metadata say source.{name} = {source[name]!r:.60}, expected a share below 1"
    for name in _COUNTS:
        if name in source and type(source[name]) is not int:
            return f"its metadata say source.{name} = {source[name]!r:.60}, expected a whole number"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
