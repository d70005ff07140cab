"""``apportion analyse``: what k follows, and what a few features tell of a document's label."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from ..activations import LoadedModel, StoreSource
from ..analysis import adaptivity, dimensions, labels_of, register_probes, surprisals
from ..complexity import Scores, load_scores
from ..complexity.scores import repeated_ids
from ..device import usable_device
from ..errors import InvalidConfig, InvalidInput
from ..io import load_sae
from ..metrics import Classes, Interval, Relation
from ..sae import SAE
from ..training import caveats
from .data import documents_of
from .evaluate import source_of
from .model import ModelOptions
from .output import import_plugins, integers_in, say, show, shown_here
from .runs import find_saes

TABLE = ("run", "covariate", "rho", "rho_half", "explained", "bin", "tokens", "documents", "k", "k_half")
PROBES = ("run", "n_features", "accuracy", "accuracy_half", "baseline", "classes", "training", "heldout")


@dataclass(frozen=True, kw_only=True)
class Analyse:
    """What the features per token of one SAE, or of all of a training folder, follow on held-out documents.

    Prints mean k in bins of a token's position, frequency, squared length, squared error, local dimension,
    surprisal (--model), scores and label, with 95 % intervals over documents; Spearman's coefficient (rho); and
    the share of k's variance that lies between the bins. With --probe: how well a few features tell the label of
    held-out documents.
    """

    run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of an SAE, or of a training that holds several."""
    data: str
    """Store with activations of the same module."""
    scores: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """File that `apportion score` wrote for the same texts: complexity, surprisal (repeatable)."""
    model: str | None = None
    """The causal language model that the store was captured from, for each token's surprisal."""
    neighbours: int = 100
    """How many of them a token's local dimension is estimated from, where there are more; 0 leaves it out."""
    labels: tuple[str, ...] = ()
    """Texts that were captured, with a word for each under --field; found by their ids."""
    field: str | None = None
    """Field of the labels."""
    text_field: str = "text"
    """Field of the text in JSONL or a dataset."""
    strict: bool = False
    """Refuse a training some of whose runs are not finished or were set aside, and a record of --labels that
    cannot be used (no text, blank, binary, broken), which is otherwise left out and counted."""
    whole: bool = False
    """Keep documents of more than 65,536 characters in one piece; otherwise they are cut into parts of about
    8,192, each a document of its own."""
    streaming: bool = False
    """Read a data set of the hub as it is needed, without a copy on this machine."""
    probe: bool = False
    """Tell the label from a few features for each class, instead."""
    features: str = "1,2,5"
    """probe: how many for each class."""
    document_tokens: int = 256
    """probe: read the first so many tokens of each document."""
    every: int = 1
    """Read only each so many-th context, so that few tokens come from many documents."""
    limit: int | None = None
    """Look at the first so many held-out tokens only."""
    module: str | None = None
    """Module to read, where the store holds several."""
    heldout: float | None = None
    """Share of documents held out; that of the training by default."""
    device: str = "cpu"
    """Where the SAEs and the model run."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ModelOptions)
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with rules of your own; its code is run (repeatable)."""
    json: bool = False
    """Print everything, the features chosen by probes included, as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        device = usable_device(self.device)
        if (not self.labels) != (self.field is None) or (self.probe and not self.labels):
            raise InvalidConfig(
                "--labels and --field belong together, and --probe needs both; give the data and "
                "the field that holds the label"
            )
        if self.probe and self.model:
            raise InvalidConfig("--probe reads no surprisal; leave --model out")
        folders, _ = find_saes([self.run_folder], self.strict)
        StoreSource(self.data, self.module)  # checks every shard once
        rows: list[dict[str, Any]] = []
        words, scores = self._words(), self._scores()
        model = self.loading.load(self.model, self.device) if self.model else None
        remarks: list[str] = []
        # What tokens have by themselves is the same for all SAEs of a split.
        of_rows: dict[str, dict[str, NDArray[np.float64]]] = {}
        for folder in folders:
            sae = load_sae(folder).to(device)
            source = source_of(self.data, self.module, self.heldout, folder.name, sae)
            labels = None if words is None else labels_of(source.documents, words[0], source.digests, words[1])
            if labels and self.probe:
                found = self._probes(sae, source, labels)
            else:
                split = str(source.describe())
                if split not in of_rows:
                    of_rows[split] = self._of_rows(source, model)
                found = self._relations(sae, source, labels, scores, of_rows[split])
            told = caveats(sae, folder.name)
            rows += [{"run": folder.name, **row, "caveats": told} for row in found]
            remarks += source.remarks()
        show(rows, self.json, PROBES if self.probe else TABLE)
        for sentence in dict.fromkeys(remarks):
            say(sentence)
        return 0

    def _relations(
        self,
        sae: SAE,
        source: StoreSource,
        labels: Classes | None,
        scores: dict[str, Scores],
        of_rows: dict[str, NDArray[np.float64]],
    ) -> Iterator[dict[str, Any]]:
        tokens = adaptivity(
            sae,
            source,
            scores=scores,
            of_documents={} if labels is None else {str(self.field): labels},
            of_rows=of_rows,
            every=self.every,
            limit=self.limit,
            progress=shown_here(),
        )
        for relation in tokens.relations():
            yield from [asdict(relation)] if self.json else _lines(relation)

    def _of_rows(self, source: StoreSource, model: LoadedModel | None) -> dict[str, NDArray[np.float64]]:
        found = {}
        if model is not None:
            found["token_surprisal"] = surprisals(source, model, limit=self.limit)
        if self.neighbours:
            known = dimensions(source, self.neighbours, every=self.every, limit=self.limit)
            if not np.isnan(known).all():
                found["dimension"] = known
        return found

    def _probes(self, sae: SAE, source: StoreSource, labels: Classes) -> Iterator[dict[str, Any]]:
        counts = integers_in(self.features, "--features")
        tokens, progress = self.document_tokens, shown_here()
        for probe in register_probes(
            sae, source, labels, n_features=counts, document_tokens=tokens, progress=progress
        ):
            yield {
                **asdict(probe),
                **_interval("accuracy", probe.accuracy),
                "heldout": probe.accuracy.n,
            }

    def _scores(self) -> dict[str, Scores]:
        """By scorer; by file too where two are of one scorer."""
        found: dict[str, Scores] = {}
        for path in self.scores:
            scores = load_scores(path)
            name = scores.header.scorer
            found[f"{name} {path}" if name in found else name] = scores
        return found

    def _words(self) -> tuple[dict[str, str], dict[str, str]] | None:
        """The label of each document that has one, by its id, and the digest of its text."""
        if not self.labels:
            return None
        names: dict[str, int] = {}

        def number(value: Any) -> float | None:
            return None if value is None else float(names.setdefault(str(value), len(names)))

        found = documents_of(
            self.labels,
            "--labels",
            text_field=self.text_field,
            target_field=self.field,
            read_target=number,
            strict=self.strict,
            whole=self.whole,
            streaming=self.streaming,
        )
        documents = list(found)
        found.left_out.tell()
        if not names:
            raise InvalidInput(
                f"no record of --labels has anything in its field {self.field!r}; name the field that holds "
                "the label"
            )
        if repeated := repeated_ids(document.id for document in documents):
            raise InvalidInput(
                f"{len(repeated):,} ids belong to more than one document of --labels (first: {repeated[0]!r}), "
                "so their labels could not be told apart; give every record an id of its own"
            )
        known = list(names)
        words = {one.id: known[int(one.target)] for one in documents if one.target is not None}
        return words, {one.id: one.digest() for one in documents if one.id in words}


def _lines(relation: Relation) -> Iterator[dict[str, Any]]:
    """A row per bin; what is said of the whole covariate stands in the first."""
    whole: dict[str, Any] = {"explained": relation.explained, **_interval("rho", relation.rho)}
    for one in relation.bins:
        own = {"bin": one.label, "tokens": one.tokens, "documents": one.k.n, **_interval("k", one.k)}
        yield {"covariate": relation.covariate, **whole, **own}
        whole = {}


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    mean, half = (None, None) if interval is None else (interval.mean, interval.half)
    return {name: mean, f"{name}_half": half}
