"""Selections over the rows of several processes are the selections of one process over all rows."""

from __future__ import annotations

import subprocess
import sys

import torch

from apportion.ops.contend import first_in_columns, first_of_all
from apportion.world import SOLO

PROGRAM = """
import sys, torch, torch.distributed as dist
from apportion.affinities import DenseAffinities
from apportion.trace import Dictionary
from apportion.world import World, SOLO

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
world = World(rank, 2)
lengths = [torch.arange(r + 2.0) for r in range(2)]
gathered = world.gather(lengths[rank])
assert all(torch.equal(a, b) for a, b in zip(gathered, lengths)), gathered

generator = torch.Generator().manual_seed(0)
pre = torch.randn(40, 12, generator=generator).mul(4).round() / 4  # with ties
dictionary = Dictionary(*(torch.zeros(s) for s in ((12, 3), (12,), (12, 3), (3,))))
x = torch.zeros(40, 3)
whole = DenseAffinities(x, x, pre, dictionary, world=SOLO)
part = slice(0, 25) if rank == 0 else slice(25, 40)
mine = DenseAffinities(x[part], x[part], pre[part], dictionary, world=world)

def dense(pairs):
    out = torch.zeros(40, 12, dtype=torch.bool)
    out[pairs.rows, pairs.features] = True
    return out

def same(got, want):
    n = part.stop - part.start
    return torch.equal(dense(got)[:n], dense(want)[part])

quota = torch.tensor([0, 1, 2, 3, 5, 8, 13, 21, 34, 40, 7, 1])
assert same(mine.top_columns(quota, "global"), whole.top_columns(quota))
for m in (0, 1, 17, 100, 480):
    assert same(mine.top_batch(m, "global"), whole.top_batch(m)), m
alone = DenseAffinities(x[part], x[part], pre[part], dictionary)
assert torch.equal(dense(mine.top_batch(17, "rank")), dense(alone.top_batch(17)))
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_choose_what_one_would(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(r), str(tmp_path / "meet")]) for r in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def test_alone_the_first_candidates_win_ties():
    values = torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0])
    features = torch.tensor([0, 1, 0, 1, 0])
    assert first_in_columns(values, features, torch.tensor([2, 1]), SOLO).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert first_of_all(values, 2, SOLO).tolist() == [False, True, True, False, False]
    assert first_of_all(values, 9, SOLO).all()
