"""Where training records go: a JSONL file per run always, services when asked for."""

from __future__ import annotations

import abc
import contextlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpoint, MissingExtra, UnknownName, nearest
from ..files import append_file, sha256, storage


@dataclass(frozen=True)
class Begun:
    """A run as a sink learns of it before its first record.

    Attributes:
        out: folder of the training.
        run: name of the run.
        step: the step that it goes on from.
        training: what tells this training from any other, whatever its folder; the same after a resume.
        config: all that the run is trained with, nested JSON.
    """

    out: Path
    run: str
    step: int
    training: str
    config: Mapping[str, Any]


class Sink(abc.ABC):
    """Takes what is to be known of one run: its records, and in the end what it came to."""

    @abc.abstractmethod
    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record: ``step``, ``tokens``, numbers, nested groups, and times under ``time``."""

    def conclude(self, result: Mapping[str, Any]) -> None:  # noqa: B027 a sink need not tell the end
        """Take what the run came to: the metadata of its SAE without its config, or why it was set aside."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flush and let go."""


class JsonLines(Sink):
    """One JSON object a line. A run that goes on cuts the file back to where its checkpoint was made.

    The last entry of a line, ``check``, is a checksum of that line and those before it.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        self._check = 0
        with storage(path):
            self._file = append_file(path)
            size = os.fstat(self._file.fileno()).st_size
            if size >= keep_bytes:
                self._file.truncate(keep_bytes)
                self._file.seek(0)
                self._check = check_log(path, self._file.read())
        if size < keep_bytes:
            self.close()
            raise InvalidCheckpoint(
                f"{path} is shorter than its checkpoint says ({size} < {keep_bytes} bytes); restore the log or "
                "start in another folder"
            )

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(_finite(record), allow_nan=False).encode()
        self._check = zlib.crc32(line, self._check)
        with storage(self.path):
            self._file.write(line[:-1] + _CHECKED % self._check)
            self._file.flush()

    def position(self) -> int:
        """Bytes written, after flushing them to the disk."""
        with storage(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk refused was reported by ``write``
            self._file.close()


_CHECKED = b', "check": "%08x"}\n'
_END = re.compile(rb', "check": "([0-9a-f]{8})"\}$')


def check_log(path: Path, data: bytes) -> int:
    """The checksum of all lines of a log. Lines that older versions wrote have none, and are taken as they are.

    Raises:
        InvalidCheckpoint: a line was changed, or one before it is gone.
    """
    check = 0
    for number, line in enumerate(data.splitlines(), 1):
        if (found := _END.search(line)) is None:
            if check:
                raise InvalidCheckpoint(_damaged(path, number))
            continue
        check = zlib.crc32(line[: found.start()] + b"}", check)
        if found[1] != b"%08x" % check:
            raise InvalidCheckpoint(_damaged(path, number))
    return check


def _damaged(path: Path, number: int) -> str:
    return (
        f"{path}, line {number}, does not match its checksum, so the log was damaged or edited; restore it, or "
        "start in another folder"
    )


def _finite(value: Any) -> Any:
    """Nested numbers with null for NaN and infinity, which other readers of JSON cannot parse."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _one_level(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings by dotted path; what is neither number nor word as JSON."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _one_level(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return flat


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers as ``group/name``; anything that is not a number is left out."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            flat[prefix + name] = float(value)
    return flat


class TensorBoard(Sink):
    """Scalars and hyperparameters under ``OUT/tensorboard/RUN`` (extra ``tensorboard``)."""

    def __init__(self, begun: Begun) -> None:
        try:
            from torch.utils.tensorboard.summary import hparams
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise MissingExtra("the log 'tensorboard' needs pip install 'apportion[tensorboard]'") from None
        where = str(begun.out / "tensorboard" / begun.run)
        self._writer: Any = SummaryWriter(where, purge_step=begun.step or None)
        self._step = begun.step
        # In the writer's own file: readers do not come back to a file once another follows it, which is what
        # ``add_hparams`` would write.
        *opening, self._ending = hparams(_one_level(begun.config), dict.fromkeys(("fvu", "l0"), 0.0))
        for part in opening:
            self._add(part)
        self._say("config", begun.config)

    def write(self, record: Mapping[str, Any]) -> None:
        self._step = int(record["step"])
        for name, value in flatten(record).items():
            self._writer.add_scalar(name, value, self._step)

    def conclude(self, result: Mapping[str, Any]) -> None:
        for name, value in flatten(result, "end/").items():
            self._writer.add_scalar(name, value, self._step)
        self._say("end", result)
        self._add(self._ending)

    def _add(self, summary: Any) -> None:
        self._writer.file_writer.add_summary(summary)

    def _say(self, name: str, data: Mapping[str, Any]) -> None:
        indented = json.dumps(data, indent=1).replace("\n", "\n    ")
        self._writer.add_text(name, f"    {indented}", self._step)  # Markdown shows an indented block as it is

    def close(self) -> None:
        self._writer.close()


class WandB(Sink):
    """A Weights & Biases run per SAE (extra ``wandb``); project and mode come from its own environment."""

    def __init__(self, begun: Begun) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtra("the log 'wandb' needs pip install 'apportion[wandb]'") from None
        self._run = wandb.init(
            # One run however often the training is resumed, and another for any other training in the same place.
            id=sha256(f"{begun.training}/{begun.run}".encode())[:16],
            name=begun.run,
            group=begun.out.name,
            dir=str(begun.out),
            config=dict(begun.config),
            reinit="create_new",
            resume="allow",
        )

    def write(self, record: Mapping[str, Any]) -> None:
        self._run.log(flatten(record), step=int(record["step"]))

    def conclude(self, result: Mapping[str, Any]) -> None:
        self._run.summary.update({"end": dict(result)})

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Begun], Sink]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Optional sinks by name."""


def check_sinks(names: Iterable[str]) -> None:
    """Raises ``UnknownName`` for a sink that is not known."""
    for name in names:
        if name not in SINKS:
            raise UnknownName(f"unknown log {name!r}; nearest: {nearest(name, SINKS)}")


def open_sink(name: str, begun: Begun) -> Sink:
    """The sink of that name. Raises ``UnknownName`` or ``MissingExtra``."""
    check_sinks([name])
    return SINKS[name](begun)
