"""How near a step comes to what its card can do: operations and bytes per second beside the measured most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidConfig

Dtype = Literal["float32", "bf16"]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
_SIDE = 8192  # of the square matrices whose product is the most that a card computes
_COPIED = 1 << 30  # bytes, far beyond any cache
_WIDE = 4  # bytes of a parameter, whatever the product is computed in


class Work(NamedTuple):
    """What a step cannot avoid: floating-point operations, and bytes to and from memory."""

    flops: float
    bytes: float


def check_device(device: str, *, parts: bool, memory: bool) -> None:
    """Raises ``InvalidConfig`` if the benchmark cannot run there."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise InvalidConfig(
            f"device = {device!r}, but torch finds no card here; run it on a machine with one, or on the cpu"
        )
    if parts or memory:
        raise InvalidConfig(
            "parts and memory are measured on the cpu only; leave them out, or run torch's profiler, which shows "
            "the parts by name"
        )


def probes(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The largest plain product, in the dtype of ``x``, and a copy, on its device."""
    left, right = (torch.randn(_SIDE, _SIDE, device=x.device).to(x.dtype) for _ in range(2))
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=x.device)
    goal = torch.empty_like(source)
    return {"matmul": lambda: left @ right, "copy": lambda: goal.copy_(source)}


def work_of_step(n: int, d_in: int, d_sae: int, entries: int, itemsize: int) -> Work:
    """The least that a step does, however it is computed.

    Operations: the encoder's product, and for every entry of the code two per coordinate in each of four sums:
    the decoder, the gradients of its values and directions, and that of the encoder's weights.

    Bytes: the pre-activations once written and once read in the product's type; a row of ``d_in`` for every entry
    in each of the four sums; over all weights nine passes (the gradient is zeroed, its norm taken, Adam reads
    four and writes three), and five over the directions (projection and renormalisation).

    Args:
        entries: of the code of all ``n`` tokens.
        itemsize: bytes of a number in the product.
    """
    flops = 2 * n * d_in * d_sae + 4 * 2 * entries * d_in
    passes = 2 * 9 + 5
    moved = 2 * n * d_sae * itemsize + 4 * entries * d_in * _WIDE + passes * d_sae * d_in * _WIDE
    return Work(float(flops), float(moved))


def rates(work: Work, seconds: float, probe_seconds: Mapping[str, float]) -> dict[str, Any]:
    """Columns: what a step comes to per second, the most that was measured, and the share of it.

    Args:
        probe_seconds: of the ``probes``.
    """
    most_flops = 2 * _SIDE**3 / probe_seconds["matmul"]
    most_bytes = 2 * _COPIED / probe_seconds["copy"]  # read and written
    return {
        "tflops_per_s": work.flops / seconds / 1e12,
        "matmul_tflops_per_s": most_flops / 1e12,
        "share_of_matmul": work.flops / seconds / most_flops,
        "gbytes_per_s": work.bytes / seconds / 1e9,
        "copy_gbytes_per_s": most_bytes / 1e9,
        "share_of_copy": work.bytes / seconds / most_bytes,
    }
