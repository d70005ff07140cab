"""``apportion evaluate``: the measures of saved SAEs on held-out tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..activations import StoreSource, load_model
from ..errors import InvalidInput
from ..evaluate import evaluate
from ..io import load_sae
from .output import import_plugins, on_terminal, show

TABLE = ("run", "k", "l0", "l0_se", "fvu", "cosine", "never_fires", "density_gini", "tokens", "tokens_per_s")
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
    heldout: float = 0.2
    """Share of documents held out; use the value of the training."""
    limit: int | None = None
    """Measure only the first so many held-out tokens."""
    downstream_limit: int = 16_384
    """Tokens for the measures in the model."""
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    json: bool = False
    """Print everything, histograms included, as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        folders = sae_folders(Path(self.run_folder))
        saes = {folder.name: load_sae(folder) for folder in folders}
        source = StoreSource(self.data, self.module, heldout=self.heldout)
        model = load_model(self.model) if self.model else None
        rows = []
        for name, sae in saes.items():
            measures = evaluate(
                sae,
                source,
                limit=self.limit,
                model=model,
                downstream_limit=self.downstream_limit,
                progress=on_terminal(),
            )
            rows.append({"run": name, "k": sae.k, **measures})
        show(rows, self.json, [*TABLE, *(key for key in DOWNSTREAM if key in rows[0])])
        return 0


def sae_folders(path: Path) -> list[Path]:
    """The folders of saved SAEs at or right below ``path``, sorted by name."""
    if (path / "sae.json").exists():
        return [path]
    found = sorted(file.parent for file in path.glob("*/sae.json"))
    if not found:
        raise InvalidInput(f"{path} holds no sae.json and no folder that does; pass a finished run")
    return found
