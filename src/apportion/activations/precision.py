"""In which type a model's weights are held, and over which devices they are spread."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import torch

from ..errors import InvalidConfig, MissingExtra
from .places import Place

ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""``auto`` is float32 for a model of up to ``LARGE`` parameters, for a larger one the type that its file has."""

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How accelerate divides a model's layers among the devices of a machine."""

LARGE = 1_000_000_000
"""Parameters. A larger model in float32 takes more than 4 GB, and is rarely stored so."""


def loaded_dtype(asked: str, kind: Any, config: Any, place: Place) -> torch.dtype | str:
    """What ``from_pretrained`` is asked for: a type, or "auto" for that of the file.

    Args:
        asked: one of ``ModelDtype``.
        kind: the class of the model, or the automatic one, which makes it from ``config``.

    Raises: ``InvalidConfig`` for another.
    """
    if asked not in get_args(ModelDtype):
        known = ", ".join(get_args(ModelDtype))
        raise InvalidConfig(f"model dtype {asked!r} is unknown; choose one of {known}")
    if asked != "auto":
        return dtype_of(asked)
    if parameters(kind, config) <= LARGE:
        return torch.float32
    # Blocks of a few bits are no type that torch computes in; this one has the range of all that they hold.
    return "auto" if place.gguf is None else torch.bfloat16


def parameters(kind: Any, config: Any) -> int:
    """How many parameters the model of ``config`` has, counted without making any."""
    make = getattr(kind, "from_config", None) or kind._from_config
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make(config).parameters())


def dtype_of(name: str) -> torch.dtype:
    """The torch type of that name."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def name_of(dtype: torch.dtype) -> str:
    """How settings and messages call ``dtype``."""
    return str(dtype).removeprefix("torch.")


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a type that ``device`` has no arithmetic for. Raises ``InvalidConfig``."""
    try:
        if computes(dtype, device):
            return
        reason = "it has no such units"
    except (RuntimeError, TypeError) as error:  # torch says either of a type that a device lacks
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
    raise InvalidConfig(
        f"the device {str(device)!r} cannot compute in {name_of(dtype)} ({reason}); choose another model dtype, "
        "such as float32, or another device"
    )


def computes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``device`` has arithmetic of ``dtype``. Torch may raise instead of saying no."""
    one = torch.ones(2, 2, dtype=dtype, device=device)
    (one @ one).sum()
    if device.type == "cuda" and dtype == torch.bfloat16:
        # Older cards do it in float32, at a fraction of the pace.
        return torch.cuda.is_bf16_supported(including_emulation=False) is True
    return True


def check_device_map(device_map: str | None) -> None:
    """Refuse to spread a model over devices where there is one.

    Raises: ``InvalidConfig`` for that and for an unknown way, ``MissingExtra`` without accelerate.
    """
    if device_map is None:
        return
    if device_map not in get_args(DeviceMap):
        known = ", ".join(get_args(DeviceMap))
        raise InvalidConfig(f"device map {device_map!r} is unknown; choose one of {known}")
    if not torch.accelerator.is_available():
        raise InvalidConfig(
            f"device map {device_map!r} spreads a model over several devices and this machine has one, its CPU; "
            "leave the device map out"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtra("a device map needs accelerate; install apportion[capture]")
