"""What a reader of an SAE's numbers has to know before believing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import InvalidConfig, UnknownName
from ..metrics.concentration import TOP, dominated
from ..sae import SAE
from .configs import RunConfig
from .missed import UNSEEN, missed

MARK = "†"
"""Stands at an SAE with caveats in every table and chart, and before each sentence on it."""


class Case(NamedTuple):
    """An SAE whose numbers are to be shown.

    Attributes:
        name: of its run, as tables have it.
        sae: it, with the metadata that it was saved with.
        measures: what was measured of it, by the names of ``apportion.evaluate``; empty where nothing was.
    """

    name: str
    sae: SAE
    measures: Mapping[str, Any]

    def told(self, *path: str) -> float | None:
        """The number at a place of the metadata; None where there is none."""
        place: Any = self.sae.metadata
        for key in path:
            place = place.get(key) if isinstance(place, Mapping) else None
        return number(place)


def caveats(sae: SAE, name: str, measures: Mapping[str, Any] | None = None) -> list[str]:
    """What is wrong with an SAE, a sentence each; none for one that is as it should be.

    All is read from its metadata, and from measures where they are given, so that an SAE of an older version is
    judged as one of today.

    Args:
        name: what the sentences call its run.
        measures: of ``apportion.evaluate``.
    """
    case = Case(name, sae, measures or {})
    return [sentence for check in CHECKS for sentence in check(case)]


def marked(text: str, caveats: Collection[str]) -> str:
    """``text``, with the mark if there are caveats."""
    return f"{text} {MARK}" if caveats else text


def number(value: object) -> float | None:
    """``value`` if it is a finite number, else None."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None  # type: ignore[return-value]


def dead_in_training(metadata: Mapping[str, Any]) -> dict[str, float | None]:
    """The shares of features that were ``dead`` when training ended, and that had ``never_fired`` in it.

    Each is None where it is not known: ``dead`` of a training shorter than its window, ``never_fired`` of one by
    an older version. Empty for an SAE that was not trained here.
    """
    training = metadata.get("training")
    if not isinstance(training, Mapping) or "dead" not in training:
        return {}
    config = training.get("config")
    window = number(config.get("dead_after")) if isinstance(config, Mapping) else None
    tokens, dead = number(training.get("tokens")), number(training["dead"])
    if window is not None and tokens is not None and tokens < window:
        dead = None  # older versions wrote 0
    return {"dead": dead, "never_fired": number(training.get("never_fired"))}


def _set_aside(case: Case) -> Iterator[str]:
    """That it is what was left of a run that diverged."""
    training = case.sae.metadata.get("training", {})
    if fault := training.get("set_aside"):
        yield f"run '{case.name}' diverged later ({fault}): this is its state after {training.get('steps')} steps"


def _off_k(case: Case) -> Iterator[str]:
    """That it missed its k, in training or frozen."""
    k, l0_train = case.told("calibration", "k"), case.told("training", "l0_train")
    if None in (k, l0_train, case.told("calibration", "l0"), case.told("calibration", "tokens")):
        return  # it was not trained here, or not to its end
    metadata = case.sae.metadata
    config = _trained_with(case.sae)
    if config.sae.allocator.mean_k != k:
        # Calibrated anew to another k: what L0 was in training says nothing about this one.
        metadata = metadata | {"training": metadata["training"] | {"l0_train": k}}
    metadata = metadata | {"calibration": {"short": 0} | metadata["calibration"]}
    yield from missed(case.name, config, metadata)


def _trained_with(sae: SAE) -> RunConfig:
    """How it was trained; where that cannot be read any more, as a run of its frozen rule."""
    try:
        return RunConfig.parse(sae.metadata["training"].get("config"), "the metadata")
    except (InvalidConfig, UnknownName):
        return RunConfig(sae=sae.config)


def _worse_than_the_mean(case: Case) -> Iterator[str]:
    """That it explains nothing."""
    trained, measured = case.told("training", "fvu_train"), number(case.measures.get("fvu"))
    if measured is not None and measured > 1:
        yield (
            f"run '{case.name}' has an FVU of {measured:.4g} here, above 1: it reconstructs worse than the mean "
            "of the activations does"
        )
    elif trained is not None and trained > 1:
        yield (
            f"run '{case.name}' ended its training at an FVU of {trained:.4g}, above 1: it reconstructs worse "
            "than the mean of the activations does; lower the learning rate or train for more steps"
        )


def _off_k_here(case: Case) -> Iterator[str]:
    """That it spends another number of features on the tokens that it was measured on."""
    l0, se, k = number(case.measures.get("l0")), number(case.measures.get("l0_se")), case.sae.k
    if l0 is not None and se is not None and abs(l0 - k) > UNSEEN * k + 2 * se:
        yield f"run '{case.name}' spends {l0:.4g} ± {se:.2g} features per token here and not k = {k:g}"


def _few_tokens(case: Case) -> Iterator[str]:
    """That its figures are about a few tokens."""
    for share in (number(case.measures.get(TOP)), case.told("calibration", TOP)):
        if sentence := dominated(share):
            yield f"run '{case.name}': {sentence}"
            return


CHECKS: tuple[Callable[[Case], Iterable[str]], ...] = (
    _set_aside,
    _off_k,
    _off_k_here,
    _worse_than_the_mean,
    _few_tokens,
)
"""A new caveat is a function here: it yields a whole sentence that names the run, or nothing."""
