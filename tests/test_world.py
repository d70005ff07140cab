"""Two real processes count together."""

from __future__ import annotations

import subprocess
import sys

import torch

from apportion.world import SOLO, World

PROGRAM = """
import sys, torch, torch.distributed as dist
from apportion.code import Code
from apportion.firing import Firing
from apportion.world import World
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
world = World(rank, 2)
mine = torch.tensor([1.0, 10.0]) * (rank + 1)
assert world.sum(mine).tolist() == [3.0, 30.0] and mine.tolist() == [rank + 1.0, 10.0 * (rank + 1)]
assert world.count(30 + rank, mine.device) == 61
firing = Firing(2)
firing.update(Code.from_dense(torch.tensor([[1.0, 0.0], [float(rank), 0.0]])), world)
assert firing.density.tolist() == [0.75, 0.0] and firing.age.tolist() == [0, 4]
firing = Firing(2)
firing.update(Code.from_dense(torch.ones(1 + 2 * rank, 2)), world)  # of unequal shares
assert firing.density.tolist() == [1.0, 1.0] and int(firing.tokens) == 4
dist.barrier()
dist.destroy_process_group()
"""


def test_alone_nothing_is_copied():
    x = torch.ones(3)
    assert SOLO.sum(x) is x and World() == SOLO


def test_counts_are_summed_where_the_tokens_are():
    """A collective of cards reduces nothing that lies on the CPU."""

    class Cards(World):
        def sum(self, tensor):
            assert tensor.device.type == "meta"
            return torch.tensor(70)

    assert Cards(0, 2).count(30, torch.device("meta")) == 70 and SOLO.count(30, torch.device("meta")) == 30


def test_two_ranks_see_one_sum(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(r), str(tmp_path / "meet")]) for r in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
