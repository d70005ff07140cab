"""A training step here and in other libraries, side by side in one run, as multiples of the encoder's product.

    python benchmarks/peers.py                # measures, minutes; needs the extra `peers` (`make speed`)
    python benchmarks/peers.py --write        # table and chart into docs/ from the results there are

Every library takes the step that its own trainer takes, with its own defaults, on the same Gaussian batch; no
feature is dead, so no auxiliary loss is computed by anyone. Needs nothing but the CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import HERE
from sections import rewrite
from torch import Tensor

import apportion as ap
from apportion.bench.timing import NOISE, products, spread, timed
from apportion.training import Run, train_step

RESULTS = HERE / "results" / "peers.json"
PAGE, CHART = HERE.parent / "docs" / "speed.md", HERE.parent / "docs" / "speed_peers.svg"
OURS = ("token_choice", "mutual_choice", "jump_relu")
LIBRARIES = ("sae-lens", "eai-sparsify", "dictionary-learning")
LONG = 100_000
"""Steps of the runs that the steps are taken from; their warm-ups and thresholds have begun."""

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="only write the page from the results there are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.write:
        result = measure(arguments.d_in, arguments.d_sae, arguments.k, arguments.batch, arguments.rounds)
        arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    result = json.loads(arguments.results.read_text())
    print(table(result))
    if arguments.write:
        write(result)


def measure(d_in: int, d_sae: int, k: int, batch: int, rounds: int) -> dict[str, Any]:
    """Medians of interleaved steps, with all that one needs to know to repeat them."""
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(12_345))
    steps = steps_of(x, d_sae, k)
    floors = products(x, d_sae)
    times: dict[str, list[float]] = {name: [] for name in (*floors, *steps)}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            for label, product in floors.items():
                times[label].append(timed(product)[0])
            times[name].append(timed(step)[0])
        if round_number == 0:  # one round to warm up
            times = {name: [] for name in times}
    floor = min((times[label] for label in floors), key=statistics.median)
    product = statistics.median(floor)
    medians = {name: statistics.median(times[name]) for name in steps}
    rows = [{"step": name, "seconds": taken, "ratio": taken / product} for name, taken in medians.items()]
    return {
        "shape": {"d_in": d_in, "d_sae": d_sae, "k": k, "batch": batch, "rounds": rounds, "dtype": "float32"},
        "product_s": product,
        "product_spread": spread(floor),
        "noisy": spread(floor) > NOISE,
        "rows": rows,
        "versions": {name: importlib.metadata.version(name) for name in ("apportion", "torch", *LIBRARIES)},
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "system": platform.platform()},
    }


def steps_of(x: Tensor, d_sae: int, k: int) -> dict[str, Step]:
    """A whole training step of each library, by its name in the table."""
    return {
        **{f"apportion {recipe}": our_step(recipe, x, d_sae, k) for recipe in OURS},
        "sparsify TopK": sparsify_step(x, d_sae, k),
        "dictionary_learning TopK": dictionary_learning_step("TopK", x, d_sae, k),
        "dictionary_learning BatchTopK": dictionary_learning_step("BatchTopK", x, d_sae, k),
        "SAELens TopK": sae_lens_step("topk", x, d_sae, {"k": k}),
        "SAELens BatchTopK": sae_lens_step("batchtopk", x, d_sae, {"k": k}),
        "SAELens JumpReLU": sae_lens_step("jumprelu", x, d_sae, {}),
    }


def our_step(recipe: str, x: Tensor, d_sae: int, k: int) -> Step:
    """A rule held to k by a price starts where half of the affinities are above zero, as its peers do."""
    config = ap.recipe(recipe).make(x.shape[1], d_sae, k, 0)
    alive = tuple(objective for objective in config.objectives if not objective.auxiliary)
    run = Run(config.model_copy(update={"objectives": alive, "dead_after": 1 << 40, "b_enc": 0.0}), x.mean(0))
    return lambda: train_step(run, x, ap.Clock(step=50_000, n_steps=LONG))


def sae_lens_step(architecture: str, x: Tensor, d_sae: int, settings: dict[str, Any]) -> Step:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    sae_class, config_class = get_sae_training_class(architecture)
    shape = {"d_in": x.shape[1], "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
    sae: TrainingSAE[Any] = sae_class(config_class(**shape, **settings))
    trainer = SAETrainer(
        SAETrainerConfig(
            device="cpu",
            total_training_samples=LONG * len(x),
            train_batch_size_samples=len(x),
            lr_end=3e-5,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        iter(()),
    )
    return lambda: trainer.step(x)


def dictionary_learning_step(rule: str, x: Tensor, d_sae: int, k: int) -> Step:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = {"TopK": TopKTrainer, "BatchTopK": BatchTopKTrainer}[rule](
        steps=LONG,
        activation_dim=x.shape[1],
        dict_size=d_sae,
        k=k,
        layer=0,
        lm_name="none",
        device="cpu",
        seed=0,
    )
    return lambda: trainer.update(50_000, x)


def sparsify_step(x: Tensor, d_sae: int, k: int) -> Step:
    """Its trainer is one function around a model: this repeats that function's lines for one activation."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=d_sae, k=k))
    optimiser = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=5e-3), momentum=0.95)
    optimiser.train()
    idle = torch.zeros(d_sae, dtype=torch.long)

    def step() -> None:
        fired = torch.zeros(d_sae, dtype=torch.bool)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        idle.add_(len(x))
        idle[fired] = 0

    return step


def processor() -> str:
    """The processor's name where the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(result: dict[str, Any]) -> str:
    """Markdown, the cheapest step first."""
    rows = sorted(result["rows"], key=lambda row: float(row["ratio"]))
    lines = [f"| {row['step']} | {row['seconds']:.2f} | **{row['ratio']:.2f}** |" for row in rows]
    return "\n".join(["| step | seconds | products |", "|---|---|---|", *lines])


def write(result: dict[str, Any]) -> None:
    """The page's section and its chart."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine, shape = result["machine"], ", ".join(f"{name} {value}" for name, value in result["shape"].items())
    noise = f"its own times spread over {result['product_spread']:.0%}" + (", noisy" if result["noisy"] else "")
    text = f"{table(result)}\n\nThe product takes {result['product_s']:.3f} s ({noise}). {shape}; {versions}; "
    text += f"{machine['processor']}, {machine['threads']} threads.\n\n![The table as bars]({CHART.name})"
    draw(result)
    rewrite(PAGE, "peers", text)


def draw(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(result["rows"], key=lambda row: -float(row["ratio"]))
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(rows) + 1), layout="constrained")
    colours = ["C0" if row["step"].startswith("apportion") else "0.65" for row in rows]
    bars = axes.barh([row["step"] for row in rows], [row["ratio"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="0.3", linewidth=1, linestyle=":")
    axes.set(xlabel="a training step, in encoder products")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(CHART)


if __name__ == "__main__":
    main()
