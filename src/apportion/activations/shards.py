"""The bytes of a shard: a safetensors file written in one deterministic order and read by byte ranges.

The library `safetensors` orders metadata by a random hash and wants whole tensors in memory; a store must
come out the same to the byte and be read by rows, so header and layout are written and parsed here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import CorruptStore
from ..files import from_json
from .files import Folder

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
# numpy has no bfloat16: its bits travel as uint16 and become bfloat16 in torch.
CARRIERS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "|b1"}
_ALIGN = 64


@dataclass(frozen=True)
class Entry:
    """One tensor in a shard: its safetensors dtype, shape and the byte where it begins in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return int(np.dtype(CARRIERS[self.dtype]).itemsize) * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.row_bytes * self.shape[0]


@dataclass(frozen=True)
class Header:
    """What a shard holds: its tensors by name, and its metadata."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def write_shard(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, int]:
    """Write a safetensors file; the same input gives the same bytes.

    Returns: the SHA-256 of the file and its number of bytes.
    """
    # Wide types first, so that every tensor is aligned to its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    digest, size = hashlib.sha256(), 0
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    for part in parts + [_bytes(tensors[name]) for name in order]:
        digest.update(part)
        file.write(part)
        size += len(part)
    return digest.hexdigest(), size


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_header(folder: Folder, name: str, size: int) -> Header:
    """The header of the shard ``name`` of ``size`` bytes. Raises ``CorruptStore`` if it is none."""
    length = int.from_bytes(folder.read_range(name, 0, 8), "little")
    try:
        if not 2 <= length <= size - 8:
            raise ValueError(f"its header would have {length} bytes")
        raw = from_json(folder.read_range(name, 8, 8 + length))
        metadata = raw.pop("__metadata__", {})
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise ValueError("its metadata are no texts")
        entries = {key: _entry(value, 8 + length, size) for key, value in raw.items()}
        _check_layout(entries.values(), 8 + length, size)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(folder, name, f"it has no readable header ({error})") from None
    return Header(entries, metadata)


def _entry(value: dict[str, Any], data: int, size: int) -> Entry:
    begin, end = value["data_offsets"]
    shape = tuple(value["shape"])
    if not shape or any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("a tensor has no shape or no place")
    entry = Entry(value["dtype"], shape, data + begin)
    if data + end > size or np.dtype(CARRIERS[entry.dtype]).itemsize * math.prod(shape) != end - begin:
        raise ValueError("a tensor lies outside the file")
    return entry


def _check_layout(entries: Iterable[Entry], begin: int, end: int) -> None:
    """Raises ``ValueError`` unless the tensors fill the file from ``begin`` to ``end``, none over another."""
    for entry in sorted(entries, key=lambda one: (one.begin, one.nbytes)):
        if entry.begin != begin:
            raise ValueError("its tensors overlap or leave gaps")
        begin += entry.nbytes
    if begin != end:
        raise ValueError("its tensors do not fill it")


def damaged(folder: Folder, name: str, fault: str) -> CorruptStore:
    """The error for the shard ``name``."""
    return CorruptStore(
        f"shard {folder.path(name)} is damaged: {fault}; restore it from a copy, or delete the store and "
        "capture it again"
    )


def as_tensor(rows: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """Rows read in the carrier type of ``dtype``, as the tensor they stand for (no copy)."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor
