"""What commands find in the folders that they are given: finished SAEs, and runs that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ApportionError, InvalidInput
from ..files import names_in_folder, read_json, what_is
from ..io import load_sae
from ..training.aside import read_aside
from .output import say


class Found(NamedTuple):
    """The folders of SAEs, sorted by name within each that was given, and what is missing beside them."""

    folders: list[Path]
    missing: list[str]


def find_saes(paths: Iterable[str], strict: bool) -> Found:
    """The SAEs at or right below each path, and a sentence for all that should be there and is not.

    The sentences are said at once, before hours of measuring.

    Raises:
        InvalidInput: there is no SAE at or right below a path; or a run is missing and ``strict``.
        StorageFailure: a folder may not be read.
    """
    folders: dict[Path, Path] = {}
    missing: list[str] = []
    for path in map(Path, paths):
        lacking = missing_runs(path)
        folders |= {folder.resolve(): folder for folder in _saes_below(path, lacking)}
        missing += lacking
    missing = list(dict.fromkeys(missing))
    if missing and strict:
        raise InvalidInput(f"{'; '.join(missing)}; train them or leave --strict out")
    for sentence in missing:
        say(f"note: {sentence}")
    return Found(list(folders.values()), missing)


def _saes_below(path: Path, missing: Sequence[str]) -> list[Path]:
    """The folders of saved SAEs at or right below ``path``, sorted by name."""
    if what_is(path / "sae.json") is not None:
        return [path]
    found = [path / name for name in names_in_folder(path) if what_is(path / name / "sae.json") is not None]
    if not found and missing:
        raise InvalidInput(f"{missing[0]}; run the same training again")
    if not found:
        raise InvalidInput(f"{path} holds no sae.json and no folder that does; pass a finished run")
    return found


def missing_runs(path: Path) -> list[str]:
    """What the folder of a training says of runs that have no SAE there: not finished, or set aside."""
    if what_is(path / "sae.json") is not None or what_is(path / "train.json") is None:
        return []
    try:
        runs = read_json(path / "train.json", "a training").get("runs")
        names = list(runs) if isinstance(runs, dict) else []
        aside = [name for name in names if read_aside(path / name) is not None]
    except ApportionError as error:
        return [f"whether runs are missing from {path} is not known, for {error}"]
    left = [name for name in names if name not in aside and what_is(path / name / "sae.json") is None]
    found = []
    for which, one, more in (
        (left, "is not finished", "are not finished"),
        (aside, "was set aside", "were set aside"),
    ):
        if which:
            what = one if len(which) == 1 else more
            found.append(f"{len(which)} of {len(names)} runs in {path} {what}: {', '.join(which)}")
    return found


def reading_of(folders: Sequence[Path]) -> dict[str, Any]:
    """How the first SAE that says so read its store, as arguments of ``StoreSource``: what was held out, and
    whether outliers took part."""
    for folder in folders:
        try:
            trained = load_sae(folder).metadata.get("source", {})
        except ApportionError:
            continue  # `compare` says what is wrong with it
        if "heldout" in trained:
            tokens = trained.get("tokens") or {}
            return {
                "heldout": float(trained["heldout"]),
                "split_seed": int(trained.get("split_seed", 0)),
                "keep_outliers": bool(tokens.get("keep_outliers", False)),
            }
    return {}
