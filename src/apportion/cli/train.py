"""``apportion train``: several SAEs on one stream of activations."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..activations import StoreSource
from ..errors import InvalidConfig
from ..recipes import find_recipe
from ..training import RunConfig, TrainConfig, train
from .output import import_plugins, integers_in, names_in, numbers_in, on_terminal, show


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train SAEs on a store: every recipe at every k (and seed), all on one shared stream.

    Running the same command again goes on after the last checkpoint.
    """

    store: Annotated[str, tyro.conf.Positional]
    """Folder that `apportion capture` wrote."""
    out: str
    """Folder for runs, logs and checkpoints."""
    recipe: str = "token_choice,mutual_choice"
    """Recipes, separated by commas: token_choice (topk), mutual_choice (batch_topk), or a rule of --plugin."""
    k: str = "32"
    """Mean features per token, one or more, separated by commas."""
    seed: str = "0"
    """Seeds of the initial weights, separated by commas; the first also orders the rows."""
    module: str | None = None
    """Module to train on, where the store holds several."""
    expansion: float = 16
    """d_sae as a multiple of the activations' width."""
    d_sae: int | None = None
    """Number of features, instead of --expansion."""
    tokens: int = 1_000_000
    """Training tokens; whole batches of them are used."""
    batch: int = 2048
    """Tokens per step."""
    lr: float | None = None
    """Peak learning rate; 0.003 unless the recipe says otherwise."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the encoder's product."""
    heldout: float = 0.2
    """Share of documents held out, half to calibrate and half to evaluate on."""
    calibrate_tokens: int | None = None
    """Held-out tokens to calibrate on; all by default."""
    checkpoint_seconds: float = 300
    """Time between checkpoints."""
    log: str = ""
    """Further logs: tensorboard, wandb."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A recipe's field, such as token_choice.lr.peak=0.002 (repeatable)."""
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    device: str = "cpu"
    """Where to train."""
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        source = StoreSource(self.store, self.module, heldout=self.heldout)
        settings = TrainConfig.parse(
            {
                "n_tokens": self.tokens,
                "batch_size": self.batch,
                "seed": integers_in(self.seed, "--seed")[0],
                "calibrate_tokens": self.calibrate_tokens,
            },
            "train",
        )
        saes = train(
            self._configs(source.d_in),
            source,
            self.out,
            settings,
            checkpoint_seconds=self.checkpoint_seconds,
            sinks=names_in(self.log, "--log") if self.log else (),
            progress=on_terminal(),
            device=self.device,
        )
        show([summary(name, sae.k, self.out, sae.metadata) for name, sae in saes.items()], self.json)
        return 0

    def _configs(self, d_in: int) -> dict[str, RunConfig]:
        if not math.isfinite(self.expansion):
            raise InvalidConfig(f"--expansion = {self.expansion} is not finite; give a factor such as 16")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InvalidConfig(f"--lr = {self.lr} is not a positive number; give a rate such as 0.001")
        d_sae = self.d_sae if self.d_sae is not None else round(self.expansion * d_in)
        seeds = integers_in(self.seed, "--seed")
        configs = {}
        for recipe in names_in(self.recipe, "--recipe"):
            for k in numbers_in(self.k, "--k"):
                for seed in seeds:
                    config = find_recipe(recipe).make(d_in, d_sae, k, seed)
                    name = f"{recipe}-k{k:g}" + (f"-s{seed}" if len(seeds) > 1 else "")
                    configs[name] = self._adjusted(config, recipe)
        return configs

    def _adjusted(self, config: RunConfig, recipe: str) -> RunConfig:
        """The config with ``--lr``, ``--precision`` and ``--set`` put in, validated as a whole."""
        data: dict[str, Any] = config.model_dump(mode="json")
        data["precision"] = self.precision
        if self.lr is not None:
            data["lr"]["peak"] = self.lr
        for setting in self.set:
            path, equals, value = setting.partition("=")
            head, _, rest = path.strip().partition(".")
            if not equals or not rest:
                raise InvalidConfig(f"--set {setting!r} is not of the form RECIPE.FIELD=VALUE")
            if head == recipe:
                _assign(data, rest, value, setting)
            elif head not in names_in(self.recipe, "--recipe"):
                raise InvalidConfig(f"--set {setting!r} names {head!r}, which is not in --recipe {self.recipe}")
        return RunConfig.parse(data, f"recipe {recipe}")


def _assign(data: dict[str, Any], path: str, value: str, setting: str) -> None:
    """Put a value at a dotted path; ``allocator`` is short for ``sae.allocator``."""
    keys = path.split(".")
    if keys[0] == "allocator":
        keys.insert(0, "sae")
    for key in keys[:-1]:
        data = data.get(key) if isinstance(data, dict) else None  # type: ignore[assignment]
    if not isinstance(data, dict):
        raise InvalidConfig(f"--set {setting!r}: there is no group '{'.'.join(keys[:-1])}' in that recipe")
    try:
        data[keys[-1]] = json.loads(value)
    except ValueError:
        data[keys[-1]] = value


def summary(name: str, k: float, out: str | Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """What training says of an SAE."""
    training, calibration = metadata["training"], metadata["calibration"]
    return {
        "run": name,
        "k": k,
        "l0_train": training["l0_train"],
        "l0_calibrated": calibration["l0"],
        "short": calibration["short"],
        "fvu_train": training["fvu_train"],
        "dead": training["dead"],
        "tokens": training["tokens"],
        "tokens_per_s": training["tokens_per_s"],
        "path": str(Path(out) / name),
    }
