"""A fingerprint of a model's weights: a folder may hold other ones tomorrow, under the same name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

_THREADS = 4
_PIECE = 2**22  # entries of a tensor that are hashed at a time, and on the way copied from a device


def fingerprint_of(model: nn.Module) -> str:
    """A hash of all parameters and buffers: their names, types, shapes and bytes.

    The same weights give the same one on any device, and in another type another one.
    """
    total = hashlib.blake2b(digest_size=16)
    # Hashing leaves Python free, so that several tensors are read at once.
    with ThreadPoolExecutor(_THREADS, "apportion-weights") as pool:
        for path, module in model.named_modules():
            with _present(module):
                own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
                digests = pool.map(_digest, (tensor for _, tensor in own))
                for (name, tensor), digest in zip(own, digests, strict=True):
                    total.update(f"{path}.{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + digest)
    return total.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for piece in tensor.detach().reshape(-1).split(_PIECE):
        found.update(piece.contiguous().cpu().view(torch.uint8).numpy().data)
    return found.digest()


@contextlib.contextmanager
def _present(module: nn.Module) -> Iterator[None]:
    """With the weights at hand that accelerate keeps elsewhere until the module runs."""
    if not any(parameter.device.type == "meta" for parameter in module.parameters(recurse=False)):
        yield
        return
    accelerate: Any = importlib.import_module("accelerate.utils")
    with accelerate.align_module_device(module, execution_device=torch.device("cpu")):
        yield
