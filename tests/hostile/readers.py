"""Each kind of file, how it is read, and the figure that must not change without a word."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import apportion as ap
from apportion.activations import StoreSource, iter_documents, load_model
from apportion.cli.runs import missing_runs
from apportion.complexity import load_scores
from apportion.complexity.answers import kept_answers
from apportion.errors import InvalidInput
from apportion.report.curves import read_curve
from apportion.training.aside import read_aside
from apportion.training.checkpoint import latest_checkpoint, load_checkpoint
from apportion.training.log import JsonLines
from apportion.training.plan import read_plan
from apportion.training.step import Run
from apportion.workspace import Workspace

from .world import PIECE, RECIPES, capture

Figure = str


@dataclass(frozen=True)
class Kind:
    """A file of the world.

    Attributes:
        file: where it lies.
        folder: what a case gets a copy of.
        read: the figure of a world whose ``folder`` is the copy.
        checked: whether damage can be told from other contents, since the file has a checksum.
        remade: whether what it says is made again where it makes no sense.
    """

    name: str
    file: str
    folder: str
    read: Callable[[Path], Figure]
    checked: bool = True
    remade: bool = False


def digest(*parts: Any) -> Figure:
    """One short name for anything that a figure is made of."""
    found = hashlib.sha256()
    for part in parts:
        data = part.numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode(errors="replace")
        found.update(data)
    return found.hexdigest()[:16]


def read_sae(folder: Path) -> Figure:
    sae = ap.load(folder)
    x = torch.randn(16, sae.d_in, generator=torch.Generator().manual_seed(0))
    code = sae.encode(x)
    return digest(sae.config, sae.metadata, code.values, sae(x), *sae.state_dict().values())


def read_store(folder: Path) -> Figure:
    source = StoreSource(folder)
    told = {key: value for key, value in source.describe().items() if key != "path"}
    blocks = [(b.x, b.document, b.position) for b in source.rows()]
    contexts = [(c.input_ids, c.keep) for c in source.contexts("evaluate")]
    stream = source.stream(64, 0)
    first = next(stream).x
    stream.close()
    parts = [tensor for pair in (*blocks, *contexts) for tensor in pair]
    return digest(json.dumps(told, sort_keys=True), source.documents, first, *parts)


def read_partial(folder: Path) -> Figure:
    world = folder.parent
    model = load_model(str(world / "model"))
    documents = iter_documents(world / "data.jsonl")
    manifest = capture(model, documents, folder)
    return digest([shard.sha256 for shard in manifest.shards], manifest.fingerprint)


def read_stopped(folder: Path) -> Figure:
    plan = read_plan(folder)
    runs = {name: Run(config, torch.zeros(config.sae.d_in), Workspace()) for name, config in plan.runs.items()}
    at = latest_checkpoint(folder)
    if at is None:
        raise InvalidInput("there is no checkpoint, so the training begins anew")
    state = load_checkpoint(at, runs)
    logs = [JsonLines(folder / name / "log.jsonl", state["runs"][name]["log_bytes"]) for name in runs]
    for log in logs:
        log.close()
    stream = StoreSource(folder.parent / "store", verify=False).stream(64, 0, state["stream"])
    first = next(stream).x
    stream.close()
    tensors = [t for run in runs.values() for t in (*run.sae.state_dict().values(), run.rng)]
    lines = [(folder / name / "log.jsonl").read_bytes() for name in runs]
    return digest(json.dumps(state, sort_keys=True), plan, first, *tensors, *lines)


def read_set_aside(folder: Path) -> Figure:
    missing = [sentence.replace(str(folder), "") for sentence in missing_runs(folder)]
    found = [read_aside(folder / f"{recipe}-k4") for recipe in RECIPES]
    if not any(found):
        raise InvalidInput(f"nothing was set aside: {missing}")
    return digest(missing, found)


def read_scores(folder: Path) -> Figure:
    scores = load_scores(folder / "scores.jsonl")
    return digest(scores.rows, scores.header)


def read_answers(folder: Path) -> Figure:
    """Which answers there are; one that is gone is asked for again, which is as good as a word."""
    with kept_answers(folder) as answers:
        found = [answers.get(f"{number:064x}") for number in range(12)]
        right = [{"lexical": number / 2, "syntactic": 10 - number / 3} for number in range(12)]
        wrong = [one for one, known in zip(found, right, strict=True) if one not in (None, known)]
        n = len(answers._known)
    if wrong or n > 12:
        return digest(wrong)
    if None in found or n < 12:
        raise InvalidInput("an answer is gone and will be asked for again")
    return digest(found)


def read_log(folder: Path) -> Figure:
    curve = read_curve(folder)
    if curve is None:
        raise InvalidInput("there is no log")
    return digest(curve)


def read_data(folder: Path) -> Figure:
    return digest([(d.id, d.text) for d in iter_documents(folder / "data.jsonl")])


KINDS = (
    Kind("sae.json", "runs/token_choice-k4/sae.json", "runs/token_choice-k4", read_sae),
    Kind("sae.safetensors", "runs/mutual_choice-k4/sae.safetensors", "runs/mutual_choice-k4", read_sae),
    Kind("sae with a transform", "mean/sae.safetensors", "mean", read_sae),
    Kind("manifest.json", "store/manifest.json", "store", read_store),
    Kind("shard", "store/shard-00001.safetensors", "store", read_store),
    Kind("progress.json", "partial/progress.json", "partial", read_partial),
    Kind("partial.json", "partial/partial.json", "partial", read_partial, remade=True),
    Kind("piece of a shard", f"partial/{PIECE}", "partial", read_partial, remade=True),
    Kind("checkpoint.json", "stopped/checkpoints/step-00000008/checkpoint.json", "stopped", read_stopped),
    Kind(
        "checkpoint tensors",
        "stopped/checkpoints/step-00000008/token_choice-k4.safetensors",
        "stopped",
        read_stopped,
    ),
    Kind("train.json", "stopped/train.json", "stopped", read_stopped),
    Kind("set_aside.json", f"aside/{RECIPES[1]}-k4/set_aside.json", "aside", read_set_aside),
    Kind("log.jsonl", "runs/token_choice-k4/log.jsonl", "runs/token_choice-k4", read_log),
    Kind("log of a stopped run", "stopped/token_choice-k4/log.jsonl", "stopped", read_stopped),
    Kind("scores.jsonl", "scores.jsonl", "scores.jsonl", read_scores),
    Kind("answers.jsonl", "answers/answers.jsonl", "answers", read_answers),
    Kind("data.jsonl", "data.jsonl", "data.jsonl", read_data, checked=False),
)


def copied(world: Path, kind: Kind, place: Path) -> tuple[Path, Path]:
    """A copy of what ``kind`` is read from: the file in it, and what to hand to ``kind.read``."""
    for name in ("model", "store", "data.jsonl"):
        if not kind.folder.startswith(name):
            (place / name).symlink_to(world / name)
    target = place / kind.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    origin = world / kind.folder
    if origin.is_dir():
        shutil.copytree(origin, target)
        return place / kind.file, target
    shutil.copy(origin, target)
    return place / kind.file, place
