"""What a step costs at the end of a training: on its own weights, thresholds and budgets, and on real rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from ..activations import Source
from ..clock import Clock
from ..errors import InvalidConfig, InvalidInput
from ..training import Run, TrainConfig, train_step
from ..training.aside import read_aside
from ..training.checkpoint import latest_checkpoint, load_checkpoint
from ..training.plan import check_runs, differing_rows, read_plan
from ..workspace import Workspace
from .timing import noisy, products, spread, timed

_WARM_UP = 2


def bench_trained(folder: str | Path, source: Source, *, rounds: int = 15) -> list[dict[str, Any]]:
    """Time steps of every run of a training from its last checkpoint on, each beside the encoder's product.

    Each round takes the batch that the training would take next, at the learning rate of its last step; nothing
    is written. A step is everything, auxiliary losses too where features are dead.

    Args:
        folder: what ``ap.train`` wrote.
        source: the one that it trained on.

    Returns:
        A row per run: ``run, step_s, product_s, ratio, tokens_per_s, product_spread, noisy`` as of
        ``bench_step``, all medians; ``l0`` of the steps, ``dead``, the share of features that were, ``d_in``,
        ``d_sae`` and ``batch``. ``dead`` is None in a training shorter than the window that dead is defined by.
        Runs that were set aside are left out.

    Raises:
        InvalidConfig: ``rounds`` is less than 2, or a newer version trained it.
        InvalidInput: the folder has no checkpoint, or ``source`` has other rows.
        InvalidCheckpoint: the folder is no training's, or the checkpoint is damaged.
    """
    if rounds < 2:
        raise InvalidConfig(f"rounds = {rounds}; give 2 or more, for one time says nothing of its noise")
    runs, settings, state = _resumed(Path(folder), source)
    dead = {name: run.firing.dead_share() for name, run in runs.items()}
    stream = source.stream(settings.batch_size, settings.seed, state["stream"])
    clock = Clock(settings.n_steps - 1, settings.n_steps, settings.n_steps * settings.batch_size)
    times: dict[str, dict[str, list[float]]] = {name: {"l0": []} for name in runs}
    try:
        first = next(stream).x * float(state["scale"])
        floors = {name: products(first, run.config.sae.d_sae) for name, run in runs.items()}
        for number in range(rounds + _WARM_UP):
            if number == _WARM_UP:
                times = {name: {"l0": []} for name in runs}
            batch = next(stream)
            x = batch.x * float(state["scale"])
            for name, run in runs.items():
                for label, product in floors[name].items():
                    times[name].setdefault(label, []).append(timed(product)[0])
                seconds, result = timed(lambda: train_step(run, x, clock, target=batch.target))  # noqa: B023
                times[name].setdefault("step", []).append(seconds)
                times[name]["l0"].append(result.trace.code.nnz / len(x))
    finally:
        stream.close()
    return [_row(name, run, times[name], list(floors[name]), len(x), dead[name]) for name, run in runs.items()]


def _resumed(folder: Path, source: Source) -> tuple[dict[str, Run], TrainConfig, dict[str, Any]]:
    """The runs as the last checkpoint has them, their stream's settings, and the rest of its state."""
    plan = read_plan(folder)
    check_runs(plan.runs, source, plan.settings)
    if other := differing_rows(plan.source, source.describe()):
        raise InvalidInput(
            f"{folder} was trained on other rows ({', '.join(other)} differ); give the source of its training"
        )
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise InvalidInput(f"{folder} has no checkpoint; wait until its training has written one")
    workspace = Workspace()
    left = {name: config for name, config in plan.runs.items() if read_aside(folder / name) is None}
    runs = {name: Run(config, torch.zeros(source.d_in), workspace) for name, config in left.items()}
    state = load_checkpoint(checkpoint, runs)
    return runs, plan.settings, state


def _row(
    name: str, run: Run, times: dict[str, list[float]], floors: list[str], batch: int, dead: float | None
) -> dict[str, Any]:
    product = min((times[label] for label in floors), key=statistics.median)
    step_s, product_s = statistics.median(times["step"]), statistics.median(product)
    row: dict[str, Any] = {
        "run": name,
        "step_s": step_s,
        "product_s": product_s,
        "ratio": step_s / product_s,
        "tokens_per_s": batch / step_s,
        "product_spread": spread(product),
        "l0": statistics.fmean(times["l0"]),
        "dead": dead,
        "d_in": run.config.sae.d_in,
        "d_sae": run.config.sae.d_sae,
        "batch": batch,
    }
    return row | {"noisy": noisy(row["product_spread"])}
