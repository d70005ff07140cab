"""Training steps in processor seconds of one thread, as multiples of the encoder's product in the same rounds.

    python benchmarks/processor.py    # into results/step_processor.json

The clock of a shared machine runs on while others use its cores; a process's own seconds do so less. Sizes are
those of ``apportion bench step``: d_in 768, d_sae 16,384, k 32, batch 2,048, Gaussian rows, no auxiliary losses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

import torch
from rows import HERE

import apportion as ap
from apportion.bench.timing import products
from apportion.clock import Clock
from apportion.training import Run, train_step

RESULTS = HERE / "results" / "step_processor.json"
RECIPES = "token_choice,adaptive_k,mutual_choice,soft_sae,feature_choice,priced"
D_IN, D_SAE, K, BATCH = 768, 16_384, 32, 2048
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", default=RECIPES, help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(12_345)
    x, target = torch.randn(BATCH, D_IN, generator=generator), torch.rand(BATCH, generator=generator)
    runs = {name: run_of(name) for name in arguments.recipes.split(",")}
    floors, seconds = products(x, D_SAE), defaultdict(list)
    for number in range(WARM_UP + arguments.rounds):
        jobs = dict(floors)
        for name, run in runs.items():
            clock = Clock(500 + number, 1000, (500 + number) * BATCH)
            jobs[name] = lambda run=run, clock=clock: train_step(run, x, clock, target=target)
        for name, job in jobs.items():
            began = time.process_time()
            job()
            if number >= WARM_UP:
                seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    product = min(medians[name] for name in floors)
    ratios = {name: medians[name] / product for name in runs}
    RESULTS.write_text(json.dumps({"product_s": product, "ratios": ratios, "rounds": arguments.rounds}, indent=1))
    print(json.dumps(ratios, indent=1))


def run_of(name: str) -> Run:
    """A recipe's run without auxiliary losses."""
    config = ap.recipe(name).make(D_IN, D_SAE, K, 0)
    kept = tuple(one for one in config.objectives if not one.auxiliary)
    return Run(config.model_copy(update={"objectives": kept}), torch.zeros(D_IN))


if __name__ == "__main__":
    main()
