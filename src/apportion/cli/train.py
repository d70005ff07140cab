"""``apportion train``: several SAEs on one stream of activations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..activations import Source, StoreSource
from ..complexity import load_scores
from ..errors import InvalidConfig
from ..recipes import Published, adjusted, find_recipe
from ..sae import SAE
from ..training import RunConfig, TrainConfig, caveats, train, with_scores
from ..training.caveats import dead_in_training
from ..transforms import TransformConfig
from .live import LiveOptions
from .output import import_plugins, integers_in, names_in, numbers_in, say, show, shown_here


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train SAEs on a store, or on a model that runs meanwhile: all recipes, k and seeds on one shared stream.

    Running the same command again goes on after the last checkpoint. A run that diverges is set aside, and the
    others go on as if it had not been there; the exit status is then 1.
    """

    store: Annotated[str | None, tyro.conf.Positional] = None
    """Folder that `apportion capture` wrote; leave it out to train live, with --model, --module and --data."""
    out: str
    """Folder for runs, logs and checkpoints."""
    recipe: str = "token_choice,mutual_choice"
    """Recipes, separated by commas: token_choice (topk), mutual_choice (batch_topk), soft_sae, feature_choice,
    adaptive_k, priced, relu_l1, p_anneal, jump_relu, gated, matryoshka, or a rule of --plugin."""
    k: str | None = None
    """Mean features per token, one or more, separated by commas; 32 unless --paper says otherwise."""
    seed: str = "0"
    """Seeds of the initial weights, separated by commas; the first also orders the rows."""
    module: str | None = None
    """Module to train on, where the store holds several, or of the model that runs."""
    paper: str | None = None
    """Published settings in place of the package's, by name (soft_sae: llm, clip; adaptive_k: pile; jump_relu,
    matryoshka: gemma; relu_l1, p_anneal, gated: board_games); other options change them."""
    scores: str | None = None
    """File that `apportion score` wrote for the same data: every token gets the score of its text as a target,
    complexity upwards, mean 0 and deviation 1 on training texts. adaptive_k needs it."""
    raw_scores: bool = False
    """Hand scores on as they are but for their direction, as adaptive_k --paper pile expects a judge's."""
    last_only: bool = False
    """Train on the last token of every context only, as AdaptiveK was published."""
    keep_outliers: bool = False
    """Let tokens take part whose norm the capture marked as far above the others'."""
    expansion: float | None = None
    """d_sae as a multiple of the activations' width; 16 unless --paper says otherwise."""
    d_sae: int | None = None
    """Number of features, instead of --expansion."""
    tokens: int | None = None
    """Training tokens, of which whole batches are used; 1,000,000 unless --paper says otherwise."""
    batch: int | None = None
    """Tokens per step; 2,048 unless --paper says otherwise."""
    lr: float | None = None
    """Peak learning rate; 0.003 unless the recipe says otherwise."""
    precision: Literal["float32", "bf16"] | None = None
    """Of the encoder's product; float32 unless the recipe says otherwise."""
    transform: str | None = None
    """What activations go through before the dictionary: none, mean (the mean of the first batch is taken off),
    layer_norm or unit (per token, undone after decoding); none unless the recipe says otherwise."""
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
    """Where to train, and where the model runs."""
    live: Annotated[LiveOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=LiveOptions)
    json: bool = False
    """Print the rows as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        if self.transform is not None:
            TransformConfig.lookup(self.transform)
        source = self._source()
        settings = self._settings()
        configs = self._configs(source.d_in)
        saes = train(
            configs,
            source,
            self.out,
            settings,
            checkpoint_seconds=self.checkpoint_seconds,
            sinks=names_in(self.log, "--log") if self.log else (),
            progress=shown_here(),
            device=self.device,
        )
        for sentence in source.remarks():
            say(sentence)
        for name, its in self._published().items():
            say(f"{name} as published, except: {its.notes or 'nothing'}")
        rows = [summary(name, sae, self.out) for name, sae in saes.items()]
        show(rows, self.json)
        return 1 if configs.keys() - saes.keys() else 0

    def _source(self) -> Source:
        """The store, with the scores of its texts if there are any; or the stream of a model."""
        if self.store is None or self.live.asked:
            if self.store is not None:
                raise InvalidConfig(f"the store {self.store} and --model or --data were given; leave one out")
            if self.scores is not None or self.last_only:
                raise InvalidConfig("--scores and --last-only read a store; capture one, or leave them out")
            return self.live.source(self.module, self.out, self.heldout, self.device, self.keep_outliers)
        source = StoreSource(
            self.store,
            self.module,
            heldout=self.heldout,
            last_only=self.last_only,
            keep_outliers=self.keep_outliers,
        )
        if self.scores is None:
            if self.raw_scores:
                raise InvalidConfig("--raw-scores says how to take --scores, which is not given; give the file")
            return source
        labelled = with_scores(source, load_scores(self.scores), standardise=not self.raw_scores)
        if unscored := labelled.describe()["targets"]["unscored"]:
            say(f"{unscored:,} texts have no score and teach the probe nothing")
        return labelled

    def _settings(self) -> TrainConfig:
        given = {"n_tokens": self.tokens, "batch_size": self.batch, "calibrate_tokens": self.calibrate_tokens}
        streams = [published.train for published in self._published().values()] or [TrainConfig()]
        if any(stream != streams[0] for stream in streams) and None in (self.tokens, self.batch):
            raise InvalidConfig(
                f"the recipes {self.recipe} were published with different streams; give --tokens and --batch"
            )
        settings = streams[0].model_dump() | {key: value for key, value in given.items() if value is not None}
        return TrainConfig.parse(settings | {"seed": integers_in(self.seed, "--seed")[0]}, "train")

    def _published(self) -> dict[str, Published]:
        """What ``--paper`` stands for, by recipe; nothing without it."""
        if self.paper is None:
            return {}
        return {name: find_recipe(name).published(self.paper) for name in names_in(self.recipe, "--recipe")}

    def _configs(self, d_in: int) -> dict[str, RunConfig]:
        if self.expansion is not None and not math.isfinite(self.expansion):
            raise InvalidConfig(f"--expansion = {self.expansion} is not finite; give a factor such as 16")
        if self.expansion is not None and self.d_sae is not None:
            raise InvalidConfig(
                f"--d-sae {self.d_sae} and --expansion {self.expansion:g} were both given; choose one"
            )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InvalidConfig(f"--lr = {self.lr} is not a positive number; give a rate such as 0.001")
        published = self._published()
        seeds = integers_in(self.seed, "--seed")
        configs = {}
        for recipe in names_in(self.recipe, "--recipe"):
            paper = published.get(recipe)
            d_sae = self._d_sae(d_in, paper)
            make = paper.make if paper else find_recipe(recipe).make
            for k in self._k(paper):
                for seed in seeds:
                    config = make(d_in, d_sae, k, seed)
                    name = f"{recipe}-k{k:g}" + (f"-s{seed}" if len(seeds) > 1 else "")
                    configs[name] = self._adjusted(config, recipe)
        return configs

    def _k(self, paper: Published | None) -> list[float]:
        if self.k is not None:
            return numbers_in(self.k, "--k")
        return [paper.k if paper is not None and paper.k is not None else 32]

    def _d_sae(self, d_in: int, paper: Published | None) -> int:
        if self.d_sae is not None:
            return self.d_sae
        if paper is not None and self.expansion is None:
            return paper.d_sae
        return round((16 if self.expansion is None else self.expansion) * d_in)

    def _adjusted(self, config: RunConfig, recipe: str) -> RunConfig:
        """The config with ``--lr``, ``--precision`` and ``--set`` put in, validated as a whole."""
        data: dict[str, Any] = config.model_dump(mode="json")
        if self.precision is not None:
            data["precision"] = self.precision
        if self.lr is not None:
            data["lr"]["peak"] = self.lr
        if self.transform is not None:
            data["sae"]["transform"] = {"kind": self.transform}
        config = RunConfig.parse(data, f"recipe {recipe}")
        return adjusted(config, recipe, self.set, names_in(self.recipe, "--recipe"))


def summary(name: str, sae: SAE, out: str | Path) -> dict[str, Any]:
    """What training says of an SAE."""
    training, calibration = sae.metadata["training"], sae.metadata["calibration"]
    return {
        "run": name,
        "k": sae.k,
        "l0_train": training["l0_train"],
        "l0_calibrated": calibration["l0"],
        "short": calibration["short"],
        "fvu_train": training.get("fvu_train"),
        **dead_in_training(sae.metadata),
        "tokens": training["tokens"],
        "tokens_per_s": training.get("tokens_per_s"),
        "path": str(Path(out) / name),
        "caveats": caveats(sae, name),
    }
