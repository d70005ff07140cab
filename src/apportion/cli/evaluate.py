"""``apportion evaluate``: the measures of saved SAEs on held-out tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from ..activations import StoreSource
from ..activations.keep import check_policy
from ..activations.models import LoadedModel
from ..device import usable_device
from ..downstream import Downstream, fewer
from ..errors import InvalidInput
from ..evaluate import evaluate
from ..io import load_sae
from ..sae import SAE
from ..training import caveats
from .model import ModelOptions
from .output import import_plugins, say, show, shown_here
from .runs import find_saes

TABLE = ("run", "k", "l0", "l0_se", "fvu", "cosine", "never_fires", "density_gini", "tokens", "tokens_per_s")
ORACLE = ("allocation_efficiency", "fvu_uniform", "fvu_oracle", "k_correlation", "importance_alone")
LEFT_OUT = ("left_out_tokens", "left_out_l0", "left_out_fvu")
DOWNSTREAM = ("ce_score", "kl", "hidden_error", "hidden_error_zero")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure one SAE, or all of a training folder, on the store's held-out documents."""

    run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of an SAE, or of a training that holds several."""
    data: str
    """Store with activations of the same module."""
    model: str | None = None
    """Also put reconstructions back into this model: CE score and KL, or the error of its output."""
    module: str | None = None
    """Module to read, where the store holds several."""
    heldout: float | None = None
    """Share of documents held out; that of the training by default."""
    limit: int | None = None
    """Measure only the first so many held-out tokens."""
    downstream_limit: int = 16_384
    """Tokens for the measures in the model."""
    oracle: int | None = None
    """Also how well the budget is spent: the share that each SAE gets of what the best k per token, up to this
    one (256, say), gains over one k for all."""
    device: str = "cpu"
    """Where the SAEs and the model run."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    strict: bool = False
    """Refuse a training some of whose runs are not finished or were set aside."""
    json: bool = False
    """Print everything, histograms included, as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        device = usable_device(self.device)
        folders, _ = find_saes([self.run_folder], self.strict)
        StoreSource(self.data, self.module)  # checks every shard once
        saes = {folder.name: load_sae(folder).to(device) for folder in folders}
        model = self.loading.load(self.model, self.device) if self.model else None
        shared: dict[str, Downstream] = {}
        rows: list[dict[str, Any]] = []
        remarks: list[str] = []
        for name, sae in saes.items():
            source = source_of(self.data, self.module, self.heldout, name, sae)
            downstream = None if model is None else self._downstream(source, model, shared)
            remarks += source.remarks()
            measures = evaluate(sae, source, limit=self.limit, oracle=self.oracle, progress=shown_here())
            if downstream is not None:
                measures |= downstream.of(sae, progress=shown_here())
            rows.append({"run": name, "k": sae.k, **measures, "caveats": caveats(sae, name, measures)})
        further = [key for key in (*ORACLE, *DOWNSTREAM) if key in rows[0]]
        further += LEFT_OUT if any(row["left_out_tokens"] for row in rows) else ()
        show(rows, self.json, [*TABLE, *further])
        for row in rows:
            _warn_if_cut(row)
        for sentence in dict.fromkeys(remarks):
            say(sentence)
        return 0

    def _downstream(self, source: StoreSource, model: LoadedModel, shared: dict[str, Downstream]) -> Downstream:
        """That of an SAE before, if its rows were split alike."""
        split = json.dumps(source.describe(), sort_keys=True)
        if split not in shared:
            shared[split] = Downstream(source, model, limit=fewer(self.limit, self.downstream_limit))
        return shared[split]


def source_of(data: str, module: str | None, heldout: float | None, name: str, sae: SAE) -> StoreSource:
    """The store, split as it was for the training. Refuses another module, model or split."""
    trained: dict[str, Any] = sae.metadata.get("source", {})
    share = heldout if heldout is not None else float(trained.get("heldout", 0.2))
    tokens: dict[str, Any] = trained.get("tokens") or {}
    source = StoreSource(
        data,
        module,
        heldout=share,
        split_seed=int(trained.get("split_seed", 0)),
        keep_outliers=bool(tokens.get("keep_outliers", False)),
        verify=False,
    )
    here = source.describe()
    for key in ("model", "module", "weights"):
        if key in trained and trained[key] != here.get(key, trained[key]):
            raise InvalidInput(
                f"'{name}' was trained on {key} {trained[key]!r} and {data} holds {here[key]!r}; "
                "evaluate it on what it was trained on"
            )
    if trained:
        check_policy(trained, here, f"'{name}'")
    if trained.get("fingerprint") == here["fingerprint"] and trained.get("heldout", share) < share:
        raise InvalidInput(
            f"--heldout {share:g} takes in documents that '{name}' was trained on (it held out "
            f"{trained['heldout']:g}); leave the option out"
        )
    return source


def _warn_if_cut(row: dict[str, Any]) -> None:
    """Say where ``--oracle`` is too small for what an SAE spends."""
    if row.get("beyond_k_max"):
        say(
            f"{row['run']} gives {row['beyond_k_max']:.2%} of the tokens more than the {row['k_max']} features "
            "that its oracle may; raise --oracle"
        )
