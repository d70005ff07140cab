"""Checkpoints: everything that the next step depends on, in safetensors and JSON, replaced atomically.

A checkpoint is a folder ``checkpoints/step-00000123`` with one ``RUN.safetensors`` per run and
``checkpoint.json``, which holds their SHA-256 and its own checksum. It is written under a temporary name, flushed
and renamed, and only then is its predecessor deleted: a process killed at any moment leaves one that is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InvalidCheckpoint
from ..files import (
    TEMPORARY,
    check_format,
    check_seal,
    names_in_folder,
    read_bytes,
    read_json,
    seal,
    sha256,
    storage,
    sync,
    write_atomically,
    write_json,
)
from ..io.checks import infinite_fault, tensors_fault
from .optimizers import moments_like
from .step import Run

FORMAT, VERSION = "apportion-checkpoint", 1


def run_tensors(run: Run) -> dict[str, Tensor]:
    """All tensors of a run by name: parameters, buffers, the optimiser's state, random state."""
    tensors = {f"sae.{name}": value for name, value in run.sae.state_dict().items()}
    tensors |= {f"firing.{name}": value for name, value in run.firing.state_dict().items()}
    tensors |= {f"objectives.{name}": value for name, value in run.objectives.state_dict().items()}
    for name, parameter in run.sae.named_parameters():
        for moment, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"{run.config.optimizer}.{name}.{moment}"] = value
    tensors["rng"] = run.rng
    return tensors


def restore_run(run: Run, tensors: dict[str, Tensor], where: Path) -> None:
    """Put ``run_tensors`` back, in place. Raises ``InvalidCheckpoint`` if names or shapes differ."""
    device = run.sae.device
    try:
        if fault := _fault(run, tensors):
            raise RuntimeError(fault)
        run.sae.load_state_dict(_under("sae.", tensors))
        run.firing.load_state_dict(_under("firing.", tensors))
        run.objectives.load_state_dict(_under("objectives.", tensors))
        for name, parameter in run.sae.named_parameters():
            moments = _under(f"{run.config.optimizer}.{name}.", tensors)
            if moments:
                run.optimizer.state[parameter] = {
                    moment: value.to(device, copy=True) for moment, value in moments.items()
                }
        torch.Generator().set_state(tensors["rng"])
        run.rng = tensors["rng"]
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidCheckpoint(f"{where} does not fit this run: {reason}; start in another folder") from None


def _fault(run: Run, tensors: dict[str, Tensor]) -> str | None:
    """What is wrong with the tensors of a checkpoint, in words: names, shapes, types, numbers that are none."""
    prefix = f"{run.config.optimizer}."
    expected = {name: value for name, value in run_tensors(run).items() if not name.startswith(prefix)}
    finite = [f"sae.{name}" for name, _ in run.sae.named_parameters()]
    finite += [name for name in expected if name.startswith("sae.transform.")]
    for name, parameter in run.sae.named_parameters():
        moments = moments_like(run.config, parameter)
        expected |= {f"{prefix}{name}.{moment}": value for moment, value in moments.items()}
        finite += [f"{prefix}{name}.{moment}" for moment in moments]
    return tensors_fault(tensors, expected) or infinite_fault({name: tensors[name] for name in finite})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def save_checkpoint(out: Path, step: int, runs: dict[str, Run], state: dict[str, Any]) -> None:
    """Write the checkpoint of ``step`` and delete older ones.

    Args:
        out: output folder of the training.
        state: everything else, JSON.

    Raises:
        StorageFailure: disk full or no permission; the previous checkpoint stays.
    """
    folder = out / "checkpoints"
    final = folder / f"step-{step:08d}"
    if not final.exists():  # else the same step again, after a resume: the bits are the same
        _write(final, step, runs, state)
    for older in folder.iterdir():
        if older != final:
            shutil.rmtree(older, ignore_errors=True)


def _write(final: Path, step: int, runs: dict[str, Run], state: dict[str, Any]) -> None:
    folder, temporary = final.parent, final.with_name(f"{TEMPORARY}{final.name}")
    with storage(final):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        digests = {}
        for name, run in runs.items():
            data = save({key: value.contiguous() for key, value in run_tensors(run).items()})
            digests[name] = sha256(data)
            write_atomically({temporary / f"{name}.safetensors": data})
        head = {"format": FORMAT, "version": VERSION, "step": step, "sha256": digests}
        where = temporary / "checkpoint.json"
        write_json(where, seal(head | state, where))
        with storage(final):
            sync(temporary)
            temporary.rename(final)
            sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a training folder."""
    folder = out / "checkpoints"
    whole = [name for name in names_in_folder(folder) if name.startswith("step-")]
    return folder / whole[-1] if whole else None


def load_checkpoint(path: Path, runs: dict[str, Run]) -> dict[str, Any]:
    """Restore ``runs`` in place and return the rest of the state.

    Raises:
        InvalidCheckpoint: damaged, of a newer version, or of other runs.
    """
    where = path / "checkpoint.json"
    state = read_json(where, "a checkpoint")
    check_format(state, FORMAT, VERSION, where)
    check_seal(state, where)
    head = _check_state(state, path, runs)
    for name, run in runs.items():
        file = path / f"{name}.safetensors"
        try:
            data = read_bytes(file)
            if sha256(data) != head.sha256.get(name):
                raise InvalidCheckpoint(f"{file} does not match checkpoint.json; start in another folder")
            tensors = load(data)
        except (SafetensorError, OSError) as error:
            raise InvalidCheckpoint(f"{file} is damaged or missing ({error}); start in another folder") from None
        restore_run(run, tensors, file)
    return state


class _Tally(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    spent: int = Field(ge=0)
    rows: int = Field(ge=0)
    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0)
    fvu: float | None


class _RunState(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    log_bytes: int = Field(ge=0)
    tally: _Tally


class _State(BaseModel):
    """What ``checkpoint.json`` must say; what else it says is up to the trainer."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    step: int = Field(ge=1)
    scale: float = Field(gt=0)
    stream: dict[str, Any]
    runs: dict[str, _RunState]
    sha256: dict[str, str]


def _check_state(state: dict[str, Any], path: Path, runs: Mapping[str, Run]) -> _State:
    """Raises ``InvalidCheckpoint`` unless ``state`` has what a training goes on from."""
    try:
        head = _State.model_validate(state)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        reason = f"{place!r} = {fault['input']!r:.60}: {fault['msg']}"
        raise InvalidCheckpoint(
            f"{path / 'checkpoint.json'} is damaged ({reason}); start in another folder"
        ) from None
    if path.name != f"step-{head.step:08d}" or not runs.keys() <= head.runs.keys():
        raise InvalidCheckpoint(
            f"{path / 'checkpoint.json'} is that of step {head.step} of the runs {', '.join(head.runs)}; start "
            "in another folder"
        )
    return head
