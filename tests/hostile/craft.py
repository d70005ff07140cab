"""Senseless contents under right checksums: what a buggy writer, or somebody else's, would leave.

A change of one place in a JSON file or of one tensor, after which every checksum fits again. Nothing may end in a
traceback or hang; changes that no reader can take for sense (``senseless``) must be refused.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from apportion.activations.shards import write_shard
from apportion.files import seal, sha256
from apportion.report.curves import read_curve
from apportion.training.log import _CHECKED

from . import world as worlds
from .cases import fresh
from .damage import references
from .readers import KINDS, Kind, copied

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 1e-320, "", "x", "../outside.safetensors"),
    *("\x1b[31m", "x" * 500, [], {}, [1], {"a": 1}, [[]], "NaN", "1", "a\0b", "\ud800", [None] * 3),
)

Tensors = dict[str, Tensor]


def crafted(world: Path, place: Path, n: int, first: int = 0) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """``n`` crafted files, JSON and tensors in turn over every kind that can be sealed again."""
    figures = references(
        world, world.parent / "reference"
    )  # and all libraries are imported, once for all children
    with contextlib.redirect_stdout(io.StringIO()):
        use(world, KINDS[0], world / KINDS[0].folder)
    kinds = {kind.name: kind for kind in KINDS}
    writers = [(kinds[name], writer) for name, writer in WRITERS]
    for number in range(first, first + n):
        kind, writer = writers[number % len(writers)]
        yield kind.name, f"crafted {number}", _case(world, place, kind, figures[kind.name], writer, number)


def _case(world: Path, place: Path, kind: Kind, reference: str, writer: Writer, seed: int) -> Callable[[], str]:
    def action() -> str:
        file, folder = copied(world, kind, fresh(place))
        draw = random.Random(seed)
        senseless = writer(file, draw)
        if kind.read(folder) != reference and kind.remade:
            return "silent change"
        use(world, kind, folder)
        return "senseless accepted" if senseless else "done"

    return action


def use(world: Path, kind: Kind, folder: Path) -> None:
    """What a command makes of a file that could be read."""
    if kind.folder.startswith("runs"):
        for command in ("evaluate", "compare", "analyse"):
            more = ["--oracle", "0"] if command == "compare" else []
            status = worlds.main([command, str(folder), "--data", str(world / "store"), "--json", *more])
            assert status in (0, 2), status
        read_curve(folder)
    elif kind.folder == "aside":
        for command in (["compare", folder, "--data", world / "store"], worlds.train_arguments(world, folder)):
            status = worlds.main([str(part) for part in command])
            assert status in (0, 1, 2), status


Writer = Callable[[Path, random.Random], bool]
"""Changes a file and makes its checksums fit; returns whether what it says now can only be nonsense."""


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in nested JSON, groups included."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed(data: Any, draw: random.Random) -> Any:
    """One place of nested JSON with something odd in it, gone, renamed or doubled."""
    data = copy.deepcopy(data)
    places = [path for path in leaves(data) if path[0] not in ("checksum", "sha256", "format")]
    *path, last = draw.choice(places)
    inner = data
    for key in path:
        inner = inner[key]
    way = draw.random()
    if way < 0.75:
        inner[last] = copy.deepcopy(draw.choice(ODD))
    elif way < 0.85:
        del inner[last]
    elif isinstance(inner, list):
        draw.choice([inner.reverse, lambda: inner.append(inner[last]), inner.clear])()
    else:
        inner[f"{last}x"] = inner.pop(last)
    return data


def write_sealed(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(seal(data, file)))


def odd_json(file: Path, draw: random.Random) -> bool:
    """A sealed JSON file with one odd place."""
    write_sealed(file, changed(json.loads(file.read_text()), draw))
    return False


def odd_scores(file: Path, draw: random.Random) -> bool:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0].pop("checksum")
    lines = changed(lines, draw)
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return False


def odd_answers(file: Path, draw: random.Random) -> bool:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line.pop("check")
    file.write_text("\n".join(json.dumps(line) for line in changed(lines, draw)))
    return False


def odd_log(file: Path, draw: random.Random) -> bool:
    import zlib

    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        record.pop("check")
    check, out = 0, b""
    for record in changed(records, draw):
        line = json.dumps(record).encode()
        check = zlib.crc32(line, check)
        out += line[:-1] + _CHECKED % check if line.endswith(b"}") else line + b"\n"
    file.write_bytes(out)
    return False


def odd_tensors(tensors: Tensors, draw: random.Random) -> bool:
    """One tensor is changed in place of the dict; returns whether no reader can take it for sense."""
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    numbers = tensor.is_floating_point()
    half = tensor.clone()
    nonsense = torch.nan if numbers else True if tensor.dtype == torch.bool else -7
    half.view(-1)[: max(1, half.numel() // 2)] = nonsense
    ways: dict[str, Callable[[], Any]] = {
        "half": lambda: tensors.update({name: half}),
        "type": lambda: tensors.update({name: tensor.to(torch.int32 if numbers else torch.float32)}),
        "narrow": lambda: tensors.update({name: tensor.to(torch.float16 if numbers else torch.bool)}),
        "shape": lambda: tensors.update({name: tensor.reshape(1, *tensor.shape)}),
        "short": lambda: tensors.update({name: tensor.reshape(-1)[: tensor.numel() // 2].clone()}),
        "gone": lambda: tensors.pop(name),
        "renamed": lambda: tensors.update({f"{name}x": tensors.pop(name)}),
        "infinite": lambda: tensors.update({name: tensor + torch.inf if numbers else -tensor.int()}),
        "overriding": lambda: tensors.update({"encoder.weight": torch.zeros(2, 2)}),
    }
    way = draw.choice(sorted(ways))
    ways[way]()
    return way in ("short", "gone", "renamed", "type", "shape") or (way == "half" and numbers)


def odd_sae(file: Path, draw: random.Random) -> bool:
    tensors = load(file.read_bytes())
    senseless = odd_tensors(tensors, draw) or "encoder.weight" in tensors
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file.write_bytes(data)
    where = file.with_name("sae.json")
    write_sealed(where, json.loads(where.read_text()) | {"sha256": sha256(data)})
    return senseless


def odd_checkpoint(file: Path, draw: random.Random) -> bool:
    tensors = load(file.read_bytes())
    senseless = odd_tensors(tensors, draw)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file.write_bytes(data)
    where = file.with_name("checkpoint.json")
    head = json.loads(where.read_text())
    head["sha256"][file.stem] = sha256(data)
    write_sealed(where, head)
    return senseless


def odd_piece(file: Path, draw: random.Random) -> bool:
    """A piece of a shard with an odd tensor: its rows are made again, or the shard has the bytes that it had."""
    tensors = load(file.read_bytes())
    odd_tensors(tensors, draw)
    with file.open("wb") as out:
        digest, _ = write_shard(out, tensors, {})
    where = file.with_name("partial.json")
    head = json.loads(where.read_text())
    next(one for one in head["pieces"] if one["file"] == file.name)["sha256"] = digest
    write_sealed(where, head)
    return False


def odd_shard(file: Path, draw: random.Random) -> bool:
    """A shard with an odd tensor, or with odd ids of documents."""
    import struct

    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = load(raw)
    senseless = False
    if draw.random() < 0.15:
        ids = json.loads(metadata["documents"])
        metadata["documents"] = json.dumps(draw.choice([[], {}, 3, None, ids[1:], [None] * len(ids), "x"]))
        senseless = True
    elif draw.random() < 0.2:
        senseless = True
        draw.choice(MOVED)(tensors)
    else:
        senseless = odd_tensors(tensors, draw)
    with file.open("wb") as out:
        digest, size = write_shard(out, tensors, metadata)
    where = file.with_name("manifest.json")
    manifest = json.loads(where.read_text())
    entry = next(one for one in manifest["shards"] if one["file"] == file.name)
    entry |= {"sha256": digest, "bytes": size}
    write_sealed(where, manifest)
    return senseless


MOVED: tuple[Callable[[Tensors], Any], ...] = (
    lambda t: t.update(document=t["document"] + 1),
    lambda t: t.update(document=t["document"].flip(0)),
    lambda t: t.update(position=t["position"] * 0),
    lambda t: t.update(document_rows=t["document_rows"].flip(0) + 1),
    lambda t: t.update(context_offsets=t["context_offsets"].flip(0)),
    lambda t: t.update(context_document=t["context_document"] + 10**6),
    lambda t: t.update(context_start=t["context_start"] - 5),
    lambda t: t.update(context_ids=-t["context_ids"] - 1),
    lambda t: t.update(context_keep=torch.zeros_like(t["context_keep"])),
)


def odd_order(file: Path, draw: random.Random) -> bool:
    """A manifest whose shards are reversed, repeated, missing or somewhere else."""
    manifest = json.loads(file.read_text())
    shards = manifest["shards"]
    last = shards[-1]
    manifest["shards"] = draw.choice([
        shards[::-1], [*shards, last], shards[1:], shards[:-1], [shards[0]] * len(shards), [],
        [{**shards[0], "file": "../outside.safetensors"}, *shards[1:]],
        [{**shards[0], "file": "/dev/zero"}, *shards[1:]],
        [*shards[:-1], {**last, "documents": last["documents"] + 1}],
        [*shards[:-1], {**last, "contexts": last["contexts"] + 1}],
    ])  # fmt: skip
    write_sealed(file, manifest)
    return True


WRITERS: tuple[tuple[str, Writer], ...] = (
    ("sae.json", odd_json),
    ("sae.safetensors", odd_sae),
    ("sae with a transform", odd_sae),
    ("manifest.json", odd_json),
    ("shard", odd_shard),
    ("manifest.json", odd_order),
    ("progress.json", odd_json),
    ("partial.json", odd_json),
    ("piece of a shard", odd_piece),
    ("set_aside.json", odd_json),
    ("checkpoint.json", odd_json),
    ("checkpoint tensors", odd_checkpoint),
    ("train.json", odd_json),
    ("log.jsonl", odd_log),
    ("scores.jsonl", odd_scores),
    ("answers.jsonl", odd_answers),
)
