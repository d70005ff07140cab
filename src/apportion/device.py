"""Whether a device is one that tensors can live on here: asked before work, not after it."""

from __future__ import annotations

import torch

from .errors import InvalidConfig


def usable_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can live there. Raises ``InvalidConfig``."""
    try:
        here = torch.zeros((), device=device)
        here.item()  # "meta" holds nothing
    except (
        RuntimeError,
        AssertionError,
        ImportError,
    ) as error:  # torch has no one family for it
        reason = str(error).splitlines()[0]
        raise InvalidConfig(f"device '{device}' cannot be used ({reason}); choose another, as cpu") from None
    return here.device
