"""Which method, k and seed a saved SAE stands for, and whether a source can measure it fairly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from ..activations.keep import check_policy
from ..activations.source import Source
from ..errors import InvalidInput
from ..sae import SAE


class Seed(NamedTuple):
    """What methods share when they are paired; None where an SAE does not say.

    Attributes:
        weights: seed of the initial weights.
        order: seed of the order of the rows.
    """

    weights: int | None
    order: int | None


@dataclass(frozen=True)
class Origin:
    """Where an SAE comes from.

    Attributes:
        name: as it was handed in, a path or any other name.
        stem: the name of its run without the parts for k and seed.
        settings: all that it was trained with apart from k and seeds, by dotted path.
        k: mean features per token that it is meant to spend.
        seed: of its weights and its stream.
    """

    name: str
    stem: str
    settings: Mapping[str, Any]
    k: float
    seed: Seed


def origin_of(name: str, sae: SAE) -> Origin:
    """Read from the run's name and the SAE's metadata.

    A saved SAE does not name its recipe, and several recipes share a rule, so the name of the run is what tells
    methods apart: ``soft_sae-k32-s1`` is ``soft_sae``, and ``k32`` alone is named by its rule. The settings guard
    against one name for two things; of a rule's, ``k`` and ``k_…`` are left out, which follow k.
    """
    training: dict[str, Any] = sae.metadata.get("training", {})
    source: dict[str, Any] = sae.metadata.get("source", {})
    run: dict[str, Any] = training.get("config") or {"sae": sae.config.model_dump(mode="json")}
    stream: dict[str, Any] = training.get("settings", {})
    about: dict[str, Any] = {key: source[key] for key in ("targets", "last_only") if key in source}
    settings = {path: value for path, value in _leaves({**run, "train": stream, **about}) if not _varies(path)}
    stem = re.sub(r"(^|-)k\d+(\.\d+)?(?=-|$)|-s\d+$", "", PurePath(name).name).strip("-")
    return Origin(
        name=name,
        stem=stem or str(run["sae"]["allocator"]["kind"]),
        settings=settings,
        k=sae.k,
        seed=Seed(run.get("seed"), stream.get("seed")),
    )


def methods_of(origins: Sequence[Origin]) -> dict[str, str]:
    """The method of each SAE by its name: the stem and, where settings differ under one stem, those that do."""
    methods = {}
    for origin in origins:
        namesakes = [other.settings for other in origins if other.stem == origin.stem]
        paths = sorted({path for settings in namesakes for path in settings})
        differing = [path for path in paths if any(s.get(path) != namesakes[0].get(path) for s in namesakes)]
        details = ", ".join(f"{path}={origin.settings.get(path)}" for path in differing)
        methods[origin.name] = f"{origin.stem} [{details}]" if details else origin.stem
    return methods


def check_fair(sae: SAE, source: Source) -> None:
    """Refuse an SAE whose figures on ``source`` would not be those of held-out tokens of what it was trained on.

    Raises:
        InvalidInput: its rule couples rows, or model, its weights, module, documents or their split are others.
    """
    if sae.allocator.couples_rows:
        raise InvalidInput(
            f"its rule {type(sae.allocator).__name__} couples rows, so its codes depend on the batch; "
            "freeze and calibrate it first"
        )
    trained, here = sae.metadata.get("source", {}), source.describe()
    both = [key for key in trained if key in here and trained[key] != here[key]]
    for key in ("model", "module", "weights", "fingerprint"):
        if key in both:
            raise InvalidInput(
                f"it was trained on {key} {trained[key]!r} and the source has {here[key]!r}; "
                "compare it on what it was trained on"
            )
    if trained:
        check_policy(trained, here, "it")
    for key in ("heldout", "split_seed"):
        if key in both:
            raise InvalidInput(
                f"it was trained with {key} = {trained[key]} and the source is split with {here[key]}, so that "
                "it may have seen what is held out here; compare it with SAEs of its own split"
            )


def _leaves(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and what lies there."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _varies(path: str) -> bool:
    """Whether SAEs of one method may differ in it."""
    key = path.rsplit(".", 1)[-1]
    budget = ".allocator." in path and (key == "k" or key.startswith("k_"))
    return budget or key in ("seed", "log_every")
