"""Our own format: ``sae.safetensors`` and ``sae.json``, a frozen SAE that takes raw activations.

Tensors have the names and layouts that peers read (``W_enc [d_in, d_sae]``, ``b_enc``, ``W_dec [d_sae, d_in]``,
``b_dec``); those of the rule stand under ``allocator.``. The JSON holds the config, the metadata and the
SHA-256 of the tensors and its own checksum, and is written last: a pair that does not match is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InvalidCheckpoint, InvalidInput
from ..files import (
    check_format,
    check_seal,
    read_bytes,
    read_json,
    seal,
    sha256,
    storage,
    to_json,
    write_atomically,
)
from ..sae import SAE, SAEConfig
from .checks import infinite_fault, metadata_fault, tensors_fault

FORMAT, VERSION = "apportion-sae", 1
_OWN = ("W_enc", "b_enc", "W_dec", "b_dec")


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write ``sae``, which must be frozen, into ``folder``.

    Both files are on the disk before either takes its name. A process killed between the two renames leaves a
    pair that ``load_sae`` refuses; saving again mends it.

    Raises:
        InvalidInput: its rule couples rows, so that it is no rule for inference, or a weight is not finite.
        StorageFailure: what was there before then stays readable.
    """
    if sae.allocator.couples_rows:
        raise InvalidInput(
            f"the rule {type(sae.allocator).__name__} couples rows, so its codes depend on the batch; "
            "save sae.freeze(), calibrated"
        )
    folder = Path(folder)
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in file_tensors(sae).items()}
    if fault := infinite_fault(_finite(tensors)):
        raise InvalidInput(f"the SAE cannot be saved: {fault}; train it with a lower learning rate")
    data = save(tensors)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "config": sae.config.model_dump(mode="json"),
        "sha256": sha256(data),
        "metadata": sae.metadata,
    }
    where = folder / "sae.json"
    write_atomically({folder / "sae.safetensors": data, where: to_json(seal(description, where), where)})


def load_sae(folder: str | Path) -> SAE:
    """Read an SAE written by ``save_sae``: frozen, in evaluation mode, without gradients.

    Raises:
        InvalidCheckpoint: missing, damaged, of a newer version, or with tensors that no SAE of its config has.
        InvalidConfig: the config has unknown keys or values out of range.
        UnknownName: its rule is not known; import the module that defines it first.
    """
    folder = Path(folder)
    description = read_json(folder / "sae.json", "an SAE")
    check_format(description, FORMAT, VERSION, folder / "sae.json")
    check_seal(description, folder / "sae.json")
    if fault := metadata_fault(description.get("metadata")):
        raise InvalidCheckpoint(f"{folder / 'sae.json'}: {fault}; it was damaged or edited, copy it again")
    config = SAEConfig.parse(description.get("config"), str(folder / "sae.json"))
    file = folder / "sae.safetensors"
    try:
        data = read_bytes(file)
        if sha256(data) != description.get("sha256"):
            raise InvalidCheckpoint(f"{file} does not match sae.json; copy the folder again")
        tensors = load(data)
    except (SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{file} cannot be read ({error}); copy the folder again") from None
    sae = _blank(config, tensors, file)
    sae.metadata = description["metadata"]
    expected = file_tensors(sae)
    if fault := tensors_fault(tensors, expected) or infinite_fault(_finite(tensors)):
        raise InvalidCheckpoint(f"{file} does not hold what its config says: {fault}; copy the folder again")
    for name, tensor in expected.items():
        tensor.copy_(tensors[name])
    return sae.eval()


def _blank(config: SAEConfig, tensors: dict[str, Tensor], file: Path) -> SAE:
    """An SAE with room for ``tensors``, without gradients. No memory is asked for that they do not fill."""
    shapes = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in)}
    for name, shape in shapes.items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype not in (torch.float32, torch.float64):
            seen = "missing" if found is None else f"a {found.dtype} of shape {tuple(found.shape)}"
            raise InvalidCheckpoint(
                f"{file} does not hold what its config says: {name!r} is {seen}, expected floats {shape}; copy "
                "the folder again"
            )
    return SAE(config).to(tensors["W_enc"].dtype).requires_grad_(False)  # float64 stays float64


def file_tensors(sae: SAE) -> dict[str, Tensor]:
    """The tensors of an SAE under the names of the file; they share its memory."""
    own = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    own |= {f"allocator.{name}": value for name, value in sae.allocator.state_dict().items()}
    own |= {f"transform.{name}": value for name, value in sae.transform.state_dict().items()}
    return {name: value.detach() for name, value in own.items()}


def _finite(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that hold finite numbers only; a rule may keep a threshold that nothing reaches."""
    return {name: value for name, value in tensors.items() if name in _OWN or name.startswith("transform.")}
