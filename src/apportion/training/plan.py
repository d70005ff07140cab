"""What is settled before the first step: that the runs fit the source, and whose folder it is."""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..activations.source import Source
from ..config import Config
from ..errors import ApportionWarning, InvalidCheckpoint, InvalidConfig, InvalidInput
from ..files import check_format, check_seal, read_json, seal, storage, what_is, write_json
from ..schedules import Schedule
from .aside import read_aside
from .configs import RunConfig, TrainConfig

FORMAT, VERSION = "apportion-training", 1
_TAKEN = {"checkpoints", "heldout", "tensorboard", "wandb", "train.json"}


def check_runs(configs: Mapping[str, RunConfig], source: Source, settings: TrainConfig) -> None:
    """Raises ``InvalidConfig`` or ``InvalidInput`` unless every run can be trained on ``source``."""
    if not configs:
        raise InvalidConfig("there is nothing to train; pass at least one run")
    for name, config in configs.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in _TAKEN:
            raise InvalidConfig(f"run name {name!r} is no folder name; use letters, digits, '.', '_' and '-'")
        if config.sae.d_in != source.d_in:
            raise InvalidInput(
                f"run '{name}' has d_in = {config.sae.d_in} but the activations are {source.d_in} wide; "
                "use the width of the activations"
            )
        check_schedules(config, settings.n_steps, name)
        check_price(config, name)
        config.sae.allocator.check(settings.n_steps, settings.batch_size, config.sae.d_sae)
        for objective in config.objectives:
            objective.check(config.sae.d_sae)
    # Said before the training and not after it, for then no other source can take its place.
    first = next(iter(source.blocks("calibrate", 1)), None)
    if first is None:
        raise InvalidInput("no documents are held out to calibrate on; raise the held-out share of the source")
    _warn_if_unmeasurable(source)
    taught = [name for name, config in configs.items() if config.sae.allocator.learns_from_targets]
    if taught and first.target is None:
        raise InvalidInput(
            f"run '{taught[0]}' learns from a score of every text and the activations come without; give scores "
            "(--scores FILE, or ap.with_scores(source, scores))"
        )


def _warn_if_unmeasurable(source: Source) -> None:
    """Say so if there is nothing that the SAEs could be evaluated on."""
    try:
        measurable = next(iter(source.blocks("evaluate", 1)), None) is not None
    except InvalidInput:
        measurable = False
    if not measurable:
        warnings.warn(
            "no documents are held out to evaluate on, so these SAEs cannot be measured on this source; give "
            "more documents or hold out a larger share",
            ApportionWarning,
            stacklevel=4,
        )


def check_price(config: RunConfig, name: str) -> None:
    """Raises ``InvalidConfig`` unless an objective sets a price and the rule pays it, or neither."""
    pays, priced = config.sae.allocator.penalised, any(objective.prices for objective in config.objectives)
    if pays and not priced:
        raise InvalidConfig(
            f"run '{name}' has a rule that only a price holds to k = {config.sae.allocator.mean_k:g} and no "
            "objective that sets one; add 'sparsity' (SparsityConfig()) to its objectives"
        )
    if priced and not pays:
        raise InvalidConfig(
            f"run '{name}' has an objective that sets a price and a rule that says it pays none; leave that "
            "objective out or, if it is your own rule and does pay, put `penalised: ClassVar[bool] = True` into "
            "its config"
        )


def check_schedules(config: Config, n_steps: int, where: str) -> None:
    """Raises ``InvalidConfig`` if a schedule anywhere in ``config`` needs more than ``n_steps`` steps."""
    for field, value in config:
        here = f"{where}.{field}"
        if isinstance(value, Schedule) and value.n_steps > n_steps:
            raise InvalidConfig(
                f"the schedule {here} takes {value.n_steps} steps and the run has {n_steps}; "
                f"train for {value.n_steps} steps or more, or shorten it"
            )
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Config):
                check_schedules(part, n_steps, here)


class Plan(NamedTuple):
    """What a training was begun with: what it read, as ``Source.describe`` says it, and what it was told.

    ``id`` was drawn when it began; None where an older version began it.
    """

    source: dict[str, Any]
    settings: TrainConfig
    runs: dict[str, RunConfig]
    id: str | None = None


def read_plan(out: Path) -> Plan:
    """What stands in the folder of a training; what an older version did not say is what it was then.

    Raises:
        InvalidCheckpoint: there is no training in ``out``, or not all of it.
        InvalidConfig: it does not validate, as what another version wrote may not.
        UnknownName: a rule of its runs is not imported.
    """
    where = out / "train.json"
    found = read_json(where, "a training")
    check_format(found, FORMAT, VERSION, where)
    if "checksum" in found:  # since it is written with one
        check_seal(found, where)
    source, settings, runs, drawn = (found.get(key) for key in ("source", "settings", "runs", "id"))
    if not (isinstance(source, dict) and isinstance(settings, dict) and isinstance(runs, dict)):
        raise InvalidCheckpoint(f"{where} names no source, settings or runs; it was damaged, copy it again")
    if not isinstance(drawn, str | None):
        raise InvalidCheckpoint(f"{where} has the id {drawn!r:.60}, expected a text; copy it again")
    try:
        configs = {name: RunConfig.parse(run, name) for name, run in runs.items()}
        return Plan(source, TrainConfig.parse(settings, "settings"), configs, drawn)
    except InvalidConfig as error:
        raise InvalidConfig(
            f"{where} was not written by this version ({error}); go on with the one that wrote it, "
            "or choose another folder"
        ) from None


def differing_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two descriptions of a source say differently; where the store lies does not matter.

    Nor does a fingerprint of the model's weights that one of them lacks, as those of an older version do.
    """
    shared = one.keys() & other.keys()
    differing = {key for key in shared if one[key] != other[key]} | (one.keys() ^ other.keys())
    return sorted(differing - {"path"} - ({"weights"} - shared))


def claim_folder(out: Path, configs: Mapping[str, RunConfig], source: Source, settings: TrainConfig) -> str:
    """Make ``out`` the folder of this training, or see that it already is; returns what tells it from others.

    Runs that were set aside may be left out of ``configs``.
    """
    plan = Plan(source.describe(), settings, dict(configs), secrets.token_hex(8))
    where = out / "train.json"
    if what_is(where) is not None:
        found = read_plan(out)
        # As they are written: a list and a tuple are the same there, and so is a class that was defined again.
        then, now = _written(found), _written(plan)
        for name in found.runs.keys() - configs.keys():
            if read_aside(out / name) is not None:
                del then["runs"][name]
        differing = [key for key in now if then[key] != now[key]]
        if rows := differing_rows(found.source, plan.source):
            differing.append("weights of the model" if rows == ["weights"] else "source")
        if differing:
            raise InvalidConfig(
                f"{out} holds a training with other {' and '.join(differing)}; "
                "repeat its arguments to go on, or choose another folder"
            )
        return found.id or str(out.resolve())  # what the sinks of older versions told trainings apart by
    if what_is(out / "checkpoints") is not None:
        raise InvalidCheckpoint(f"{out} has checkpoints but no train.json; choose another folder")
    with storage(out):
        for name in configs:
            (out / name).mkdir(parents=True, exist_ok=True)
    told = {"format": FORMAT, "version": VERSION, "id": plan.id, "source": plan.source, **_written(plan)}
    write_json(where, seal(told, where))
    return str(plan.id)


def _written(plan: Plan) -> dict[str, Any]:
    """What was told, as JSON."""
    runs = {name: config.model_dump(mode="json") for name, config in plan.runs.items()}
    return {"runs": runs, "settings": plan.settings.model_dump(mode="json")}
