"""What a step costs by listing the affinities above zero and by the dense way, at some densities.

``python benchmarks/crowded.py`` prints the table of docs/figures.md beside ``affinities.dense.CROWDED``: a step
of ``relu_l1`` as a multiple of the encoder's product, in processor seconds of one thread, medians of interleaved
rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from apportion.affinities import dense
from apportion.bench.timing import products
from apportion.clock import Clock
from apportion.recipes import find_recipe
from apportion.schedules import Constant
from apportion.training import Run, train_step

D_IN, D_SAE, BATCH, ROUNDS = 768, 16_384, 1024, 3
DENSITIES = (0.005, 0.01, 0.02, 0.04, 0.08)
WAYS = {"listed": 1.0, "dense": 0.0}
"""What ``CROWDED`` is for a step that takes this way."""


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(12_345))
    config = find_recipe("relu_l1").make(D_IN, D_SAE, 32, 0).model_copy(update={"lr": Constant(value=1e-9)})
    run = Run(config, x.mean(0))
    with torch.no_grad():
        some = ((x[:64] - run.sae.b_dec) @ run.sae.W_enc).flatten().sort().values
    shifts = {density: -float(some[round((1 - density) * len(some))]) for density in DENSITIES}
    floors = products(x, D_SAE)
    times: dict[Any, list[float]] = {}
    for number in range(ROUNDS + 1):
        for density, shift in shifts.items():
            for label, product in floors.items():
                times.setdefault(label, []).append(seconds(product))
            for way in WAYS:
                with torch.no_grad():
                    run.sae.b_enc.fill_(shift)
                with taking(way):
                    times.setdefault((density, way), []).append(
                        seconds(lambda: train_step(run, x, Clock(50, 100)))
                    )
        if number == 0:
            times = {}
    floor = min(statistics.median(times[label]) for label in floors)
    sys.stdout.write("| density | listed | dense |\n|---|---|---|\n")
    for density in DENSITIES:
        cells = [f"{statistics.median(times[density, way]) / floor:.2f}" for way in WAYS]
        sys.stdout.write(f"| {density:.1%} | {cells[0]} | {cells[1]} |\n")


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds, which other jobs disturb less than those of the clock."""
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def taking(way: str) -> Iterator[None]:
    """Every step inside takes one way, whatever its density."""
    usual, dense.CROWDED = dense.CROWDED, WAYS[way]
    try:
        yield
    finally:
        dense.CROWDED = usual


if __name__ == "__main__":
    main()
