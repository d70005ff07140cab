"""``apportion report``: one page of HTML about many SAEs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..activations import StoreSource
from ..report import report
from .model import ModelOptions
from .output import import_plugins, say, show, shown_here
from .runs import find_saes, reading_of


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one page of HTML about all SAEs of some trainings, which opens from disk, without network.

    Fronts with intervals, oracle efficiency, features per token in numbers and in coloured text, densities,
    training curves, and a browser of features.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """Folders of SAEs, or of trainings that hold several."""
    data: str
    """Store that they were trained on; documents are held out as the first SAE's training did."""
    out: Annotated[str, tyro.conf.arg(aliases=("-o",))]
    """The page, such as page.html."""
    model: str | None = None
    """Also measure in this model, and for a causal one show the tokens that features raise and lower."""
    module: str | None = None
    """Module to read, where the store holds several."""
    limit: int | None = None
    """Measure only the first so many held-out tokens."""
    downstream_limit: int = 16_384
    """Tokens for the measures in the model."""
    oracle: int = 256
    """How well each budget is spent, beside the best k per token up to this one; 0 for not at all."""
    detailed: int = 5
    """SAEs that are shown token by token and feature by feature."""
    features: int = 2000
    """Most features of each of these."""
    device: str = "cpu"
    """Where the SAEs and the model run."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    strict: bool = False
    """Refuse a training some of whose runs are not finished or were set aside."""
    json: bool = False
    """Print where the page is and how large as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        folders, missing = find_saes(self.runs, self.strict)
        source = StoreSource(self.data, self.module, **reading_of(folders))
        model = self.loading.load(self.model, self.device) if self.model else None
        comparison = report(
            {str(folder): folder for folder in folders},
            source,
            self.out,
            model=model,
            limit=self.limit,
            downstream_limit=self.downstream_limit,
            oracle=self.oracle or None,
            detailed=self.detailed,
            features=self.features,
            device=self.device,
            notes=missing,
            progress=shown_here(),
        )
        size = Path(self.out).stat().st_size
        show([{"page": self.out, "bytes": size, "saes": len(comparison.saes)}], self.json)
        for name, reason in comparison.left_out.items():
            say(f"apportion: {name} is left out: {' '.join(reason.split())}")
        marked = [sentence for sae in comparison.saes for sentence in sae.caveats]
        for note in (*comparison.notes[len(missing) :], *marked):  # what is missing was said before
            say(f"note: {note}")
        return 2 if comparison.left_out else 0
