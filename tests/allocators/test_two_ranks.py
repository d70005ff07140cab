"""What rules learn is the same in every process, whatever each has seen; budgets are those of the scope."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from apportion.allocators import (
    FeatureChoiceConfig, MutualChoiceConfig, ReLUConfig, SoftTopKConfig, TokenChoiceConfig
)
from apportion.budgets import LabelsConfig, LessonConfig, PricedConfig, RidgeConfig
from apportion.clock import Clock
from apportion.firing import Firing
from apportion.objectives import SparsityConfig
from apportion.ops.zipf import whole_quotas
from apportion.schedules import Jump, Linear
from apportion.world import World
from tests.conftest import inputs, make_sae

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
world = World(rank, 2)
lesson = LessonConfig(gather=Jump(start=1.0, end=0.0, at=0.3), joint=Jump(start=0.0, end=0.1, at=0.5))
taught = TokenChoiceConfig(budget=RidgeConfig(k=6, lesson=lesson))
priced = TokenChoiceConfig(budget=PricedConfig(k=6, labels=LabelsConfig(every=3, rows=20)))
for scope in ("rank", "global"):
    for config in (
        FeatureChoiceConfig(k=6, scope=scope, warmup=0.3, refresh_every=2, wake=0.1),
        MutualChoiceConfig(k=6, scope=scope),
        SoftTopKConfig.for_k(6),
        ReLUConfig(k=6, p=Linear(start=1.0, end=0.2)),
        taught,
        priced,
    ):
        sae, price = make_sae(config), SparsityConfig().build()
        spent, raised = [], 0.0
        for step in range(10):
            if config.kind == "feature_choice":
                quota = whole_quotas(sae.allocator.quotas(100 if scope == "global" else 50), step)
            # Shares of unequal size, every second step.
            both = [inputs(50 + 20 * (2 * r - 1) * (step % 2), seed=10 * step + r) for r in (0, 1)]
            x = both[rank]
            trace = sae.trace(x, Clock(step, 10), target=x[:, 0], world=world)
            if config.kind in ("feature_choice", "mutual_choice") and scope == "global":
                # What one process would do with all rows.
                alone = sae.trace(torch.cat(both), Clock(step, 10))
                own = alone.code.to_dense()[len(both[0]) :] if rank else alone.code.to_dense()[: len(both[0])]
                torch.testing.assert_close(trace.code.to_dense(), own)
                ours, all_rows = (sae.allocator.terms(t, sae.dictionary()) for t in (trace, alone))
                torch.testing.assert_close(ours, all_rows)
                raised += float(sum(all_rows.values()))
            sae.allocator.observe(trace, sae.dictionary(), Firing(96), world)
            spent.append(int(world.sum(torch.tensor(trace.code.nnz))))
            if trace.penalty is not None:
                price.observe(trace, world)
        for name, buffer in (*sae.allocator.named_buffers(), *price.named_buffers()):
            mine, others = buffer.double().flatten(), world.gather(buffer.double().flatten())
            assert all(torch.equal(mine, other) for other in others), (config.kind, scope, name)
        if config is taught:
            assert int(sae.allocator.budget.lesson.taught) and float(sae.allocator.budget.weight[0]) > 0.9
        if config is priced:
            tokens = float(sae.allocator.budget.regression.sums[-2, -2])
            assert sae.allocator.budget.weight.any() and 133 < tokens <= 134, "34 labels or 33"
        if config.kind in ("feature_choice", "mutual_choice"):
            assert max(spent) <= 600, (config.kind, scope, spent)
            assert spent[0] == 600, (config.kind, scope, spent)
        if config.kind == "feature_choice" and scope == "global":
            counts = world.sum(torch.bincount(trace.code.indices, minlength=96))
            assert (counts <= quota).all() and counts.sum() > 0.9 * quota.sum() and raised != 0
            assert int(sae.allocator.batch) == 100
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_learn_the_same(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", PROGRAM]
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path / "meet"), root]) for r in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
