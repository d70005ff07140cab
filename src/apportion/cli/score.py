"""``apportion score``: how complex texts are, into a file that names them as a capture does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..activations.contexts import TextCutter, check_context, most_positions
from ..activations.frame import cut_otherwise
from ..activations.store import cutter_of
from ..activations.texts import Document
from ..complexity import (
    LanguageModel,
    Scored,
    Scorer,
    ScorerConfig,
    Scores,
    Text,
    Tools,
    load_scores,
    save_scores,
)
from ..complexity.base import number_in
from ..complexity.scores import FORMAT, Header, repeated_ids
from ..errors import InvalidConfig, InvalidInput, StorageFailure
from ..files import from_json, open_file, storage, what_is
from ..progress import bar
from .data import documents_of, named
from .model import ModelOptions
from .output import import_plugins, say, show, shown_here
from .probe import TABLE as TABLE_OF_PROBES
from .probe import probe_rows

TABLE = ("scorer", "direction", "texts", "scored", "failed", "mean", "std", "min", "max", "out")
LONGEST = 1024
"""Tokens that a model reads at once unless told otherwise; its logits take memory in proportion."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score how complex texts are: by a formula, a language model's surprise, a judge, or labels of your own.

    With --probe: how well a ridge regression on the activations of a store predicts the scores of held-out texts.
    A text that cannot be scored is left out and reported. A judge's answers are kept beside the file as they
    come: the same command again goes on where it was stopped.
    """

    data: tuple[str, ...] = ()
    """A .txt, .jsonl(.gz), .parquet, .json or .csv file, a folder of .txt, or a `datasets` name
    (NAME[:CONFIG][@SPLIT]); several of them, or a pattern such as 'texts/*.jsonl'."""
    scorer: str | None = None
    """readability, surprisal, llm, column, or a scorer of --plugin."""
    out: str | None = None
    """File of the scores (JSON Lines), replaced when all texts are done."""
    formula: str | None = None
    """readability: flesch_kincaid_grade, flesch_reading_ease, smog_index, dale_chall_readability_score, ..."""
    model: str | None = None
    """surprisal: hub id or folder of a causal model. llm: the judge's name at its endpoint."""
    url: str | None = None
    """llm: the endpoint, up to /v1; its key is read from the environment, from OPENAI_API_KEY or the variable
    of --set key_env=NAME."""
    column: str | None = None
    """column: the numeric field of the data."""
    direction: Literal["up", "down"] | None = None
    """column: whether its numbers rise with complexity (up) or fall, as ratings of ease do (down)."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further setting of the scorer, such as min_words=50, per_minute=60 or key_env=null (repeatable)."""
    text_field: str = "text"
    """Field of the text in JSONL or a dataset."""
    strict: bool = False
    """Refuse a record that cannot be used (no text, blank, binary, broken), which is otherwise left
    out and counted."""
    whole: bool = False
    """Keep documents of more than 65,536 characters in one piece; otherwise they are cut into parts of about
    8,192, each a document of its own."""
    streaming: bool = False
    """Read a data set of the hub as it is needed, without a copy on this machine."""
    context: int | None = None
    """Score contexts of so many tokens, as a capture with --tokenizer cuts them, instead of documents."""
    tokenizer: str | None = None
    """Model whose contexts to score."""
    skip_first: int = 0
    """Leave out the first so many positions of every context, as a capture with the same option does."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Whether every context begins with the token that begins a text, as for the capture."""
    limit: int | None = None
    """Score only the first so many documents."""
    probe: bool = False
    """Print a row per module of --store and pooling (last token, mean, every token) instead of a summary."""
    store: str | None = None
    """probe: folder that `apportion capture` wrote for the same data."""
    scores: str | None = None
    """probe: file of scores that is there already, in place of --data, --scorer and --out."""
    heldout: float = 0.2
    """probe: share of documents held out."""
    device: str = "cpu"
    """Where a model runs, such as cuda."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A .py file or module with a scorer of your own; its code is run (repeatable)."""
    json: bool = False
    """Print the summary as JSON."""

    def run(self) -> int:
        import_plugins(self.plugin)
        if not self.probe:
            self._report(self._scores())
            return 0
        if self.store is None:
            raise InvalidConfig("--probe reads activations, and --store is missing; give what `capture` wrote")
        scores = self._scores() if self.scores is None else load_scores(self.scores)
        show(probe_rows(self.store, scores, self.heldout), self.json, TABLE_OF_PROBES)
        return 0

    def _scores(self) -> Scores:
        """Score the data into ``out``."""
        if missing := [name for name in ("data", "scorer", "out") if not getattr(self, name)]:
            names = ", ".join(f"--{name}" for name in missing)
            raise InvalidConfig(f"{names} is missing; say what to score, how, and the file to keep scores in")
        assert self.data is not None and self.scorer is not None and self.out is not None
        config = self._config()
        out = _writable(Path(self.out))
        texts = self._texts(config.label_field)
        scorer = config.build(Tools(self._language_model, out.with_name(f"{out.name}.cache")))
        done = self._score(scorer, texts)
        if all(row.value is None for row in done):
            raise InvalidInput(f"none of the {len(done):,} texts got a score: {_reasons(done)}")
        header = Header(
            scorer=self.scorer,
            direction=1 if scorer.direction > 0 else -1,
            settings=scorer.settings(),
            data={"data": named(self.data), "text_field": self.text_field}
            | ({"context": self.context, "tokenizer": self.tokenizer} if self.context else {})
            | cut_otherwise(self.skip_first, self.bos),
        )
        return save_scores(out, header, done)

    def _config(self) -> ScorerConfig:
        """The scorer's config from the flags that were given and ``--set``."""
        flags = ("formula", "model", "url", "column", "direction")
        data: dict[str, Any] = {name: getattr(self, name) for name in flags if getattr(self, name) is not None}
        for setting in self.set:
            name, equals, value = setting.partition("=")
            if not equals or not name.strip():
                raise InvalidConfig(f"--set {setting!r} is not of the form SETTING=VALUE")
            try:
                data[name.strip()] = from_json(value)
            except ValueError:
                data[name.strip()] = value
        kind = ScorerConfig.lookup(self.scorer)
        config = kind.parse(data | {"kind": self.scorer}, f"scorer {self.scorer}")
        assert isinstance(config, ScorerConfig)
        return config

    def _texts(self, label_field: str | None) -> list[Text]:
        """What is scored: documents, or their contexts."""
        if self.limit is not None and self.limit < 1:
            raise InvalidConfig(f"--limit = {self.limit}; score 1 text at least, or leave the option out")
        found = documents_of(
            self.data,
            text_field=self.text_field,
            target_field=label_field,
            read_target=number_in,
            strict=self.strict,
            whole=self.whole,
            streaming=self.streaming,
        )
        documents = list(islice(found, self.limit))
        found.left_out.tell()
        if repeated := repeated_ids(document.id for document in documents):
            raise InvalidInput(
                f"{len(repeated):,} ids belong to more than one document of {named(self.data)} (first: "
                f"{repeated[0]!r}), so their scores could not be told apart; give every record an id of its own"
            )
        if self.context is None and self.tokenizer is None:
            return [Text(document.id, document.text, None, document.target) for document in documents]
        return self._contexts(documents)

    def _contexts(self, documents: Sequence[Document]) -> list[Text]:
        if self.context is None or self.tokenizer is None:
            raise InvalidConfig("--context and --tokenizer belong together; give both, as for the capture")
        loaded = self.loading.load(self.tokenizer, "cpu")
        cut: dict[str, Any] = {"skip_first": self.skip_first, "bos": self.bos}
        check_context(loaded.model, loaded.tokenizer, self.context, name=self.tokenizer, **cut)
        cutter = TextCutter(loaded.tokenizer, self.context, spans=True, **cut)
        texts = []
        for document in documents:
            for window in cutter.windows([document], 0)[0]:
                piece = document.text[slice(*window.span)] if window.span else ""
                texts.append(Text(document.id, piece, window.start, document.target, document.digest()))
        return texts

    def _language_model(self, name: str, context: int | None) -> LanguageModel:
        loaded = self.loading.load(name, self.device)
        length = context or min(most_positions(loaded.model) or LONGEST, LONGEST)
        skip = 0 if self.context else self.skip_first  # of contexts, it is gone already
        cutter = cutter_of(loaded, (), length, tensors=False, skip_first=skip, bos=self.bos)
        return LanguageModel(loaded, cutter, length)

    def _score(self, scorer: Scorer, texts: Sequence[Text]) -> list[Scored]:
        with contextlib.closing(scorer.score(texts)) as running:
            return list(bar(running, total=len(texts), unit="text", shown=shown_here()))

    def _report(self, scores: Scores) -> None:
        values, failed = scores.values, sum(scores.failures.values())
        row = {
            "scorer": self.scorer,
            "direction": scores.header.direction,
            "texts": len(scores.rows),
            "scored": len(values),
            "failed": failed,
            "mean": float(values.mean()),
            "std": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
            "out": self.out,
            "failures": dict(scores.failures),
            "settings": scores.header.settings,
        }
        if failed:
            say(f"{failed:,} of {len(scores.rows):,} texts were left out: {_reasons(scores.rows)}")
        if len(values) > 1 and values.min() == values.max():
            say(f"all {len(values):,} scores are {values[0]:g}: no probe can be fitted to them")
        show([row], self.json, TABLE)


def _writable(out: Path) -> Path:
    """``out``, unless something that is no file of scores is there. Makes its folder."""
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if (found := what_is(out)) == "folder":
        raise StorageFailure(f"--out {out} is a folder; give the path of a file")
    if found == "other":
        raise StorageFailure(f"--out {out} is a pipe or a device; give the path of a file")
    if not os.access(out.parent, os.W_OK):
        raise StorageFailure(f"--out {out} cannot be written; choose a folder that you may write to")
    if found == "file":
        with storage(out), open_file(out) as file:
            if FORMAT.encode() not in file.read(1000):
                raise StorageFailure(f"--out {out} is there and holds no scores; give the path of a new file")
    return out


def _reasons(rows: Sequence[Scored], most: int = 3) -> str:
    """Why texts were left out, with counts and the first of each."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row.failure is not None:
            by_reason.setdefault(row.failure, []).append(row.id)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    named = [f"{len(ids):,} with {reason} (first: {ids[0]!r})" for reason, ids in ordered[:most]]
    return "; ".join([*named, *([f"{len(ordered) - most} other reasons"] if len(ordered) > most else [])])
