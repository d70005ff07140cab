"""A small world of everything that commands read and write, made in seconds, without the network."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import apportion as ap
from apportion.activations import (
    StoreSource,
    capture_to_store,
    extract,
    iter_documents,
    load_model,
    partial,
    writing,
)
from apportion.activations.manifest import Manifest
from apportion.cli import main
from apportion.complexity.answers import kept_answers
from apportion.training import trainer
from apportion.training.aside import SetAside, write_aside
from apportion.transforms import MeanConfig

WORDS = ["the", "of", "cat", "tree", "river", "sleeps", "under", "old", "quiet", "stone", "light", "over", "and"]
MODULE, D_SAE, TOKENS, BATCH = "gpt_neox.layers.0", 48, 1024, 64
RECIPES = ("token_choice", "mutual_choice")
PIECE = "partial-00002-00000.safetensors"


class Interrupted(Exception):
    """The world was stopped here on purpose."""


def build(out: Path) -> Path:
    """Make the world in ``out``; the same on every machine but for rounding."""
    out.mkdir(parents=True, exist_ok=True)
    make_model(out / "model")
    make_data(out / "data.jsonl", 48, 60)
    loaded = load_model(str(out / "model"))
    documents = list(iter_documents(out / "data.jsonl"))
    capture(loaded, documents, out / "store")
    stop_capture(loaded, documents, out / "partial")
    run("score", "--data", out / "data.jsonl", "--scorer", "column", "--column", "ease", "--direction", "down",
        "--out", out / "scores.jsonl")  # fmt: skip
    with kept_answers(out / "answers") as answers:
        for number in range(12):
            answers.put(f"{number:064x}", {"lexical": number / 2, "syntactic": 10 - number / 3})
    run(*train_arguments(out, "runs"))
    stop_training(out)
    set_aside(out)
    transformed(out / "mean")
    return out


def run(*arguments: object) -> str:
    """Standard output of one command, which must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as heard:
        status = main([str(argument) for argument in arguments])
    assert status == 0, heard.getvalue()
    return said.getvalue()


def train_arguments(world: Path, out: str | Path) -> list[object]:
    """The training that ``runs`` is the end of, and ``stopped`` the middle."""
    sizes = ["--d-sae", D_SAE, "--k", 4, "--tokens", TOKENS, "--batch", BATCH]
    recipes = ["--recipe", ",".join(RECIPES), "--transform", "mean"]
    return ["train", world / "store", "--out", world / out, *recipes, *sizes]


def make_model(folder: Path) -> None:
    """A GPT-NeoX of two layers of 16, with random weights, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>")
    config = GPTNeoXConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def make_data(path: Path, documents: int, words: int) -> None:
    """Texts of up to ``words`` words with a number and a label each."""
    draw = random.Random(0)
    lines = []
    for number in range(documents):
        text = " ".join(draw.choices(WORDS, k=draw.randint(words // 2, words)))
        record = {"id": f"doc{number}", "text": text, "ease": draw.random(), "kind": draw.choice(["a", "b"])}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


def capture(loaded: Any, documents: Any, out: Path) -> Manifest:
    """A store of several shards, in which some rows are marked as outliers."""
    sizes = {"context": 32, "shard_rows": 512, "batch_size": 4}
    with mock.patch.object(
        writing, "MEDIAN_ROWS", 256
    ):  # else the first shards wait for more rows than there are
        return capture_to_store(loaded, MODULE, documents, out, outliers=1.1, **sizes)


def stop_capture(loaded: Any, documents: list[Any], out: Path) -> None:
    """A capture that ended with an error in the middle of its third shard, of which there are pieces."""
    passes = interrupted(extract.capture, 12)
    with (
        mock.patch.object(extract, "capture", passes),
        mock.patch.object(partial, "PIECE_SECONDS", 0.0),
        contextlib.suppress(Interrupted),
    ):
        capture(loaded, documents, out)
    assert (out / "progress.json").exists() and not (out / "manifest.json").exists()
    assert (out / PIECE).exists() and (out / "partial.json").exists()


def interrupted(action: Callable[..., Any], left: int) -> Callable[..., Any]:
    """``action``, so many times."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted
        return action(*args, **kwargs)

    return limited


def stop_training(world: Path) -> None:
    """The training again, ended by an error in its ninth step, with a checkpoint of before."""
    steps = interrupted(trainer.train_step, 2 * 8)
    with mock.patch.object(trainer, "train_step", steps), contextlib.suppress(Interrupted):
        main([str(part) for part in [*train_arguments(world, "stopped"), "--checkpoint-seconds", 0]])
    assert list((world / "stopped" / "checkpoints").glob("step-*"))


def set_aside(world: Path) -> None:
    """The training again, as if one of its runs had diverged."""
    shutil.copytree(world / "runs", world / "aside")
    diverged = world / "aside" / f"{RECIPES[1]}-k4"
    for file in diverged.glob("sae.*"):
        file.unlink()
    write_aside(diverged, SetAside(5, "its weights are not finite before step 5", None))


def transformed(folder: Path) -> None:
    """An SAE whose transform has a tensor: what is trained here has folded it in."""
    config = ap.recipe("token_choice").make(16, D_SAE, 4, 0).sae
    sae = ap.SAE(config.model_copy(update={"transform": MeanConfig()}))
    draw = torch.Generator().manual_seed(0)
    sae.transform.initialise(torch.randn(64, 16, generator=draw))
    sae.initialise(torch.zeros(16), draw)
    ap.save(sae.freeze(), folder)


def source(world: Path) -> ap.Source:
    """The store of the world."""
    return StoreSource(world / "store")
