"""Selections that several processes make together: each hands in its own best and keeps what survives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..world import World


def first_in_columns(values: Tensor, features: Tensor, quota: Tensor, world: World) -> Tensor:
    """[nnz] bool: which of this process's candidates are among the ``quota[f]`` largest of their feature.

    Ties go to the lower rank, then to the earlier candidate.

    Args:
        values: [nnz] of this process's candidates, among them its own ``quota[f]`` largest of every feature.
        features: [nnz] int64.
        quota: [d_sae] int64, of all processes together.
    """
    everyone, sides = world.gather(values), world.gather(features)
    value, feature = torch.cat(everyone), torch.cat(sides)
    order = value.argsort(descending=True, stable=True)
    order = order[feature[order].argsort(stable=True)]
    counts = torch.bincount(feature, minlength=len(quota))
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[feature[order]]
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order] = place < quota[feature[order]]
    return _mine(kept, everyone, world)


def first_of_all(values: Tensor, m: int, world: World) -> Tensor:
    """[nnz] bool: which of this process's candidates are among the ``m`` largest of all processes.

    Ties go to the lower rank, then to the earlier candidate.

    Args:
        values: [nnz] of this process's candidates, among them its own ``m`` largest.
    """
    everyone = world.gather(values)
    order = torch.cat(everyone).argsort(descending=True, stable=True)
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order[:m]] = True
    return _mine(kept, everyone, world)


def _mine(kept: Tensor, everyone: list[Tensor], world: World) -> Tensor:
    start = sum(len(part) for part in everyone[: world.rank])
    return kept[start : start + len(everyone[world.rank])]
