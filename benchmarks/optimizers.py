"""What Adafactor costs in quality: the same SAEs trained with it and with Adam, at several rates, on one stream.

    python benchmarks/optimizers.py                    # tokens from a known dictionary
    python benchmarks/optimizers.py --store STORE      # activations of your own

Prints Markdown: FVU on held-out tokens, the mean over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

from rows import CACHE

import apportion as ap
from apportion.schedules import WarmupDecay

OPTIMIZERS = ("adam", "adafactor")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", help="a store of activations; without it tokens are made")
    parser.add_argument("--recipe", default="token_choice")
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=float, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], help="peaks of the schedule")
    arguments = parser.parse_args()
    synthetic = ap.SyntheticSource(ap.SyntheticConfig(n_tokens=400_000))
    source = ap.StoreSource(arguments.store) if arguments.store else synthetic
    configs = {
        name_of(optimizer, lr, seed): ap.recipe(arguments.recipe)
        .make(source.d_in, arguments.d_sae, arguments.k, seed)
        .model_copy(update={"optimizer": optimizer, "lr": WarmupDecay(peak=lr)})
        for optimizer in OPTIMIZERS
        for lr in arguments.lr
        for seed in range(arguments.seeds)
    }
    train = ap.TrainConfig(n_tokens=arguments.steps * arguments.batch, batch_size=arguments.batch)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        saes = ap.train(configs, source, folder, train)
    fvu = {name: float(ap.evaluate(sae, source, limit=16_384)["fvu"]) for name, sae in saes.items()}
    print("| peak lr | " + " | ".join(OPTIMIZERS) + " |\n" + "|---" * (1 + len(OPTIMIZERS)) + "|")
    for lr in arguments.lr:
        means = [
            statistics.mean(fvu[name_of(optimizer, lr, seed)] for seed in range(arguments.seeds))
            for optimizer in OPTIMIZERS
        ]
        print(f"| {lr:g} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")


def name_of(optimizer: str, lr: float, seed: int) -> str:
    return f"{optimizer}-{lr:g}-{seed}"


if __name__ == "__main__":
    main()
