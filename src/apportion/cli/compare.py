"""``apportion compare``: methods at equal measured L0, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from ..activations import StoreSource
from ..compare import compare, to_csv, to_json, to_markdown
from ..errors import InvalidConfig
from .model import ModelOptions
from .output import escaped, import_plugins, put, say, shown_here
from .runs import find_saes, reading_of


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods at equal measured L0: all SAEs of some trainings, on the same held-out documents.

    SAEs whose runs have one name, but for k and seed, are one method. Prints Markdown.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """Folders of SAEs, or of trainings that hold several."""
    data: str
    """Store that they were trained on; documents are held out as the first SAE's training did."""
    model: str | None = None
    """Also put reconstructions back into this model: CE score and KL, or the error of its output."""
    module: str | None = None
    """Module to read, where the store holds several."""
    limit: int | None = None
    """Measure only the first so many held-out tokens."""
    downstream_limit: int = 16_384
    """Tokens for the measures in the model."""
    oracle: int = 256
    """How well each budget is spent, beside the best k per token up to this one; 0 for not at all."""
    device: str = "cpu"
    """Where the SAEs and the model run."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    strict: bool = False
    """Refuse a training some of whose runs are not finished or were set aside."""
    json: bool = False
    """Print everything, each SAE included, as JSON."""
    csv: bool = False
    """Print a line per number as CSV."""

    def run(self) -> int:
        if self.json and self.csv:
            raise InvalidConfig("--json and --csv were both given; choose one")
        import_plugins(self.plugin)
        folders, missing = find_saes(self.runs, self.strict)
        source = StoreSource(self.data, self.module, **reading_of(folders))
        model = self.loading.load(self.model, self.device) if self.model else None
        comparison = compare(
            {str(folder): folder for folder in folders},
            source,
            limit=self.limit,
            model=model,
            downstream_limit=self.downstream_limit,
            oracle=self.oracle or None,
            device=self.device,
            progress=shown_here(),
        )
        comparison = replace(comparison, notes=(*missing, *comparison.notes))
        show = to_json if self.json else to_csv if self.csv else to_markdown
        text = show(comparison)
        put(text if self.json else escaped(text))
        for name, reason in comparison.left_out.items():
            say(f"apportion: {name} is left out: {' '.join(reason.split())}")
        for note in comparison.notes[len(missing) :]:  # what is missing was said before
            say(f"note: {note}")
        return 2 if comparison.left_out else 0
