"""Optimisers by name: what a step makes of the gradients, at the learning rate that the schedule says.

A new one is a builder in ``_BUILDERS`` and its name in ``RunConfig.optimizer``. What it keeps from step to step
are tensors in its ``state``, which checkpoints save under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, Adam, Optimizer

from .configs import OptimizerName, RunConfig

_UNIT = 2.0**20  # a power of two, so that dividing a rate by it and multiplying by it again is exact
_FLOOR = 1e-12  # torch's default, 1e-7, is above the mean square of a large dictionary's clipped gradients


def build_optimizer(config: RunConfig, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The optimiser of a run, over parameters of one device; ``set_lr`` before its first step."""
    return _BUILDERS[config.optimizer](config, parameters)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Let the next step move at that rate, in the units of the parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr / group["unit"]


def moments_like(config: RunConfig, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimiser keeps of a parameter from its first step on: names, shapes and types, no values."""
    # Seen on a small one whose sides are told apart by their lengths, of which a moment may lack some.
    small = nn.Parameter(torch.zeros(tuple(range(2, 2 + parameter.ndim))))
    small.grad = torch.zeros_like(small)
    optimizer = build_optimizer(config, [small])
    optimizer.step()
    sides = {1: 1, **dict(enumerate(parameter.shape, 2))}
    return {
        name: torch.empty([sides[length] for length in moment.shape], dtype=moment.dtype, device="meta")
        for name, moment in optimizer.state[small].items()
    }


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of what it keeps from step to step."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def _adam(config: RunConfig, parameters: Sequence[nn.Parameter]) -> Optimizer:
    fused = parameters[0].device.type in ("cpu", "cuda")
    return Adam(_in_units(parameters, 1.0), lr=0.0, betas=config.betas, eps=config.eps, fused=fused)


def _adafactor(config: RunConfig, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Shazeer and Stern (2018) without their relative step sizes: ``lr`` means what it means to Adam.

    torch moves a parameter p by max(eps[1], RMS(p)) · min(lr, 1/√t). Steps in proportion to RMS(p) suit neither
    directions, whose coordinates shrink with d_in, nor biases, which start at zero; 1/√t would overrule the
    schedule of a long run. With ``eps[1]`` above any RMS and the rate divided by it, ``lr`` is all that is left.
    """
    return Adafactor(_in_units(parameters, _UNIT), lr=0.0, eps=(_FLOOR, _UNIT))


def _in_units(parameters: Sequence[nn.Parameter], unit: float) -> list[dict[str, Any]]:
    return [{"params": list(parameters), "unit": unit}]


_BUILDERS: dict[OptimizerName, Callable[[RunConfig, Sequence[nn.Parameter]], Optimizer]] = {
    "adam": _adam,
    "adafactor": _adafactor,
}
