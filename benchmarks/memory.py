"""The memory that a capture takes: measured from a model of 135 M parameters, computed for models up to 14 B.

    python benchmarks/memory.py           # prints the table
    python benchmarks/memory.py --write   # into docs/large_models.md

Computed rows make the model on the meta device, which holds shapes and no numbers, and count what a forward pass
would hold. The measured row is the growth of a process that captures, by its resident memory.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from apportion.activations import capture_to_store, load_model
from apportion.activations.memory import CaptureMemory, capture_memory
from apportion.activations.texts import Document

PAGE = Path(__file__).parents[1] / "docs" / "large_models.md"
BEGIN, END = "<!-- table: benchmarks/memory.py -->\n", "<!-- end of table -->\n"
MEASURED, MODULE = "smollm2-135m", "model.layers.15"
ROWS, SHARD_ROWS = 20_000, 16_384


@dataclass(frozen=True)
class Shape:
    """A model of known shape: its config, and the block in its middle."""

    name: str
    config: Any
    module: str
    dtype: torch.dtype


def llama_like(family: str, name: str, blocks: int, dtype: torch.dtype, **sizes: Any) -> Shape:
    config = getattr(transformers, f"{family}Config")(num_hidden_layers=blocks, use_cache=False, **sizes)
    return Shape(name, config, f"model.layers.{blocks // 2}", dtype)


def shapes() -> list[Shape]:
    tiny = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    eight = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    fourteen = {"hidden_size": 5120, "intermediate_size": 17408, "num_attention_heads": 40, "head_dim": 128}
    pythia = transformers.GPTNeoXConfig(
        vocab_size=50304, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16
    )
    pythia.use_cache = False
    half, full = torch.bfloat16, torch.float32
    return [
        llama_like("Llama", "SmolLM2 135M", 30, full, vocab_size=49152, tie_word_embeddings=True, **tiny),
        llama_like("Llama", "SmolLM2 135M", 30, half, vocab_size=49152, tie_word_embeddings=True, **tiny),
        Shape("Pythia 1.4B", pythia, "gpt_neox.layers.12", half),
        llama_like("Llama", "Llama 2 7B", 32, half, vocab_size=32000, **seven),
        llama_like("Llama", "Llama 3 8B", 32, half, vocab_size=128256, **eight),
        llama_like("Qwen3", "Qwen3 14B", 40, half, vocab_size=151936, num_key_value_heads=8, **fourteen),
        llama_like("Qwen3", "Qwen3 14B", 40, full, vocab_size=151936, num_key_value_heads=8, **fourteen),
    ]


def computed(shape: Shape) -> CaptureMemory:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype).eval()
    return capture_memory(model, [shape.module], shard_rows=SHARD_ROWS)


def texts() -> Iterator[Document]:
    """Texts without end that take no memory."""
    for number in count():
        yield Document(str(number), " ".join(f"word {number} and {at}" for at in range(400)))


def measure(rows: int) -> None:
    """Print, in bytes, the memory of this process without a model, and by how much one and a capture raise it."""
    for library in ("transformers.models.llama.modeling_llama", "accelerate", "gguf", "datasets"):
        importlib.import_module(library)  # they come when they are first used
    process = psutil.Process()
    before = process.memory_info().rss
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(MEASURED)
    at_loading, peak[0] = peak[0] - before, 0
    with tempfile.TemporaryDirectory() as out:
        capture_to_store(model, MODULE, texts(), Path(out) / "store", max_rows=rows, shard_rows=SHARD_ROWS)
    done.set()
    watcher.join()
    sys.stdout.write(f"{before} {at_loading} {peak[0] - before}\n")


def measured(rows: int) -> tuple[int, int, int]:
    """Bytes of the libraries, and without them at the peak of loading and at that of the capture."""
    command = [sys.executable, __file__, "--measure", str(rows)]
    # glibc keeps what was freed for later, which is no need of a capture.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    libraries, loading, peak = map(int, done.stdout.split())
    return libraries, loading, peak


def table(rows: int) -> str:
    lines = [
        "| model | parameters | weights in | weights | + a batch of states | + a shard | = computed | measured |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    libraries, loading, peak = measured(rows)
    for number, shape in enumerate(shapes()):
        need = computed(shape)
        seen = f"{peak / 1e9:.2f}" if number == 0 else ""
        parts = " | ".join(f"{value / 1e9:.2f}" for value in (need.weights, need.batch, need.shard, need.total))
        kind = str(shape.dtype).removeprefix("torch.")
        lines.append(f"| {shape.name} | {need.parameters / 1e9:.2f} B | {kind} | {parts} | {seen} |")
    lines += [
        "",
        f"GB, for contexts of 128, batches of 32 and shards of {SHARD_ROWS:,} rows in float32. On top come",
        f"Python and its libraries, {libraries / 1e9:.2f} GB, and a tokenizer, which the measured row has.",
        f"Loading that model, which is dequantised then, took {loading / 1e9:.2f} GB at its peak.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the table of docs/large_models.md")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows that the measured capture stores")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure)
        return
    text = table(arguments.rows)
    print(text)
    if arguments.write:
        page = PAGE.read_text()
        head, rest = page.split(BEGIN)
        PAGE.write_text(head + BEGIN + text + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
