"""The processes that train together. Rules that count over a batch count over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """A process and its peers; alone by default.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes, as a new tensor where there are several."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def count(self, n: int, device: torch.device) -> int:
        """The sum of ``n`` over all processes, which is reduced on ``device``."""
        return n if self.size == 1 else int(self.sum(torch.tensor(n, device=device)))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """``tensor [m]`` of every process, by rank; m may differ between them."""
        if self.size == 1:
            return [tensor]
        mine = torch.tensor([len(tensor)], device=tensor.device)
        lengths = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(lengths, mine)
        padded = tensor.new_zeros(max(int(length) for length in lengths))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]


SOLO = World()
"""One process."""
