"""Our own format: ``sae.safetensors`` and ``sae.json``, a frozen SAE that takes raw activations.

Tensors have the names and layouts that peers read (``W_enc [d_in, d_sae]``, ``b_enc``, ``W_dec [d_sae, d_in]``,
``b_dec``); those of the rule stand under ``allocator.``. The JSON holds the config, the metadata and the
SHA-256 of the tensors and its own checksum, and is written last: a pair that does not match is refused.
"""

from __future__ import annotations

from pathlib import Path

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

FORMAT, VERSION = "apportion-sae", 1


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write ``sae``, which must be frozen, into ``folder``.

    Both files are on the disk before either takes its name. A process killed between the two renames leaves a
    pair that ``load_sae`` refuses; saving again mends it.

    Raises:
        InvalidInput: its rule couples rows, so that it is no rule for inference.
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
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors |= {f"allocator.{name}": value for name, value in sae.allocator.state_dict().items()}
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
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
        InvalidCheckpoint: missing, damaged, or of a newer version.
        InvalidConfig: the config has unknown keys or values out of range.
        UnknownName: its rule is not known; import the module that defines it first.
    """
    folder = Path(folder)
    description = read_json(folder / "sae.json", "an SAE")
    check_format(description, FORMAT, VERSION, folder / "sae.json")
    check_seal(description, folder / "sae.json")
    config = SAEConfig.parse(description.get("config"), str(folder / "sae.json"))
    file = folder / "sae.safetensors"
    try:
        data = read_bytes(file)
        if sha256(data) != description.get("sha256"):
            raise InvalidCheckpoint(f"{file} does not match sae.json; copy the folder again")
        tensors = load(data)
    except (SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{file} cannot be read ({error}); copy the folder again") from None
    sae = SAE(config, description.get("metadata"))
    try:
        sae.to(tensors["W_enc"].dtype)  # float64 stays float64
        sae.load_state_dict(_as_parameters(tensors))
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InvalidCheckpoint(f"{file} does not hold what its config says: {reason}") from None
    return sae.requires_grad_(False).eval()


def _as_parameters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """File names to the module's: the encoder is stored feature-major in memory."""
    named = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"]}
    return named | {name: value for name, value in tensors.items() if name not in ("W_enc", "b_enc")}
