"""Trains the same thing again and again in forked children, and kills each child at a planned moment.

``python -m tests.training.kill_server REFERENCE OUT SEED`` prints the attempts as JSON lines.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import apportion as ap
import apportion.training.trainer as trainer
from apportion.training.log import JsonLines

from .training_kit import config, import_plugin, settings, source

N_STEPS = 150
RUNS = ("token_choice", "mutual_choice", "drop_choice")


def die() -> None:
    """What a power cut looks like from inside."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(owner: Any, name: str, n: int, when: str, match: str = "") -> None:
    """Kill this process around the n-th call of ``owner.name`` whose arguments mention ``match``."""
    original, left = getattr(owner, name), n

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= match in str(args)
        if left == 0 and when == "before":
            die()
        if left == 0 and when == "midway":
            midway(name, args)
        result = original(*args, **kwargs)
        if left == 0:
            die()
        return result

    setattr(owner, name, wrapped)


def slow_down() -> None:
    """At most a hundred steps a second, so that no machine is too fast for the clock's kills."""
    original = trainer.train_step

    def slower(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01 / len(RUNS))
        return original(*args, **kwargs)

    trainer.train_step = slower


def midway(name: str, args: tuple[Any, ...]) -> None:
    """Do a part of the work of a call, then die."""
    if name == "write":  # half a line of the log
        args[0]._file.write(b'{"step": 7, "lo')
        args[0]._file.flush()
    if name == "rmtree" and Path(args[0]).is_dir():  # one file of an old checkpoint
        next(Path(args[0]).iterdir()).unlink()
    die()


OWNERS: dict[str, Any] = {
    "rename": Path,
    "replace": Path,
    "fsync": os,
    "rmtree": shutil,
    "write": JsonLines,
    "train_step": trainer,
}


def train(out: Path, plan: dict[str, Any], seconds: float) -> None:
    if "name" in plan:
        arm(OWNERS[plan["name"]], plan["name"], plan["n"], plan["when"], plan.get("match", ""))
    if "after_seconds" in plan:
        slow_down()
    configs = {kind: config(kind, 4.0, seed=3, dead_after=64) for kind in RUNS}
    ap.train(configs, source(), out, settings(N_STEPS), checkpoint_seconds=seconds)


def attempt(out: Path, plan: dict[str, Any], seconds: float) -> bool:
    """Train in a child until it ends or the plan strikes; returns whether it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(out, plan, seconds)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if "after_seconds" in plan:
        time.sleep(plan["after_seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"the training failed under {plan}")
    return False


def plans(seed: int) -> list[dict[str, Any]]:
    """Kills around every kind of write, kills by the clock, and kills while the results are saved."""
    draw = random.Random(seed)
    events = [
        {"name": name, "n": draw.randint(1, high), "when": when}
        for name, when, high in (
            ("rename", "before", 4),
            ("rename", "after", 4),
            ("replace", "before", 8),
            ("replace", "after", 8),
            ("fsync", "before", 20),
            ("fsync", "before", 20),
            ("rmtree", "before", 5),
            ("rmtree", "midway", 5),
            ("write", "midway", 5),
            ("write", "after", 5),
            ("train_step", "before", 9),
            ("train_step", "after", 9),
        )
    ]
    clock = [{"after_seconds": draw.uniform(0.05, 0.25)} for _ in range(7)]
    both = [*events, *clock]
    draw.shuffle(both)
    # Without a checkpoint first: the resume is a fresh start over a log that is already there.
    start = [{"name": "train_step", "n": 20, "when": "after"}, {"name": "rename", "n": 1, "when": "before"}]
    end = [
        {"name": "rename", "n": 1, "when": "after", "match": f"step-{N_STEPS:08d}"},
        {"name": "replace", "n": 1, "when": "before", "match": "sae.safetensors"},
        {"name": "replace", "n": 1, "when": "after", "match": "tmp-sae.json"},
        {"name": "replace", "n": 3, "when": "before", "match": "tmp-sae.json"},
    ]
    return [*start, *both, *end]


def main() -> None:
    reference, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    import_plugin()
    torch.set_num_threads(1)  # no other thread may exist when this process forks
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # takes a second to import, once for all children
    attempt(reference, {}, 300.0)
    for i, plan in enumerate([*plans(seed), {}]):
        seconds = 300.0 if i == 0 or not plan else 0.05 if "match" in plan else 0.0
        sys.stdout.write(json.dumps({**plan, "killed": attempt(out, plan, seconds)}) + "\n")


if __name__ == "__main__":
    main()
