"""What is kept of a run that diverged while others of its training went on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeGuard

from ..errors import InvalidCheckpoint
from ..files import check_format, check_seal, read_json, seal, what_is, write_json

FORMAT, VERSION = "apportion-set-aside", 1
LAST_GOOD = "last-good"
"""Folder inside a run's own, of the SAE that its last checkpoint before it diverged held."""
_ADVICE = "lower the learning rate or check the activations"


@dataclass(frozen=True)
class SetAside:
    """A run that diverged.

    Attributes:
        step: the step at which it was noticed.
        fault: what was wrong, in a clause.
        kept: how many steps the SAE in ``LAST_GOOD`` was trained for; None where there was no checkpoint.
    """

    step: int
    fault: str
    kept: int | None

    def warning(self, name: str) -> str:
        """What is said where other runs went on."""
        kept = f"its state after {self.kept} steps is in {name}/{LAST_GOOD}"
        return (
            f"run '{name}' was set aside: {self.fault}; "
            f"{'no earlier good state of it was saved' if self.kept is None else kept}; "
            f"{_ADVICE}, in another folder"
        )

    def error(self, name: str, others: int) -> str:
        """What is said where no run is left."""
        more = f"; none is left, for {others} more diverged" if others else ""
        return f"run '{name}': {self.fault}; {_ADVICE}, in another folder{more}"


def write_aside(folder: Path, aside: SetAside) -> None:
    """Note in the folder of a run that it was set aside. Raises ``StorageFailure``."""
    where = folder / "set_aside.json"
    write_json(where, seal({"format": FORMAT, "version": VERSION, **asdict(aside)}, where))


def read_aside(folder: Path) -> SetAside | None:
    """What ``write_aside`` noted in the folder of a run; None if it was not set aside.

    Raises:
        InvalidCheckpoint: the note is damaged or of a newer version.
    """
    where = folder / "set_aside.json"
    if what_is(where) is None:
        return None
    found = read_json(where, "a run that was set aside")
    check_format(found, FORMAT, VERSION, where)
    check_seal(found, where)
    step, fault, kept = found.get("step"), found.get("fault"), found.get("kept")
    if not (_is_step(step) and isinstance(fault, str) and (_is_step(kept) or kept is None)):
        raise InvalidCheckpoint(f"{where} names no step and fault; delete it to train the run again")
    return SetAside(step, fault, kept)


def _is_step(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
