"""What is said of a trained SAE that does not spend its k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .configs import RunConfig

PRICED = 0.02
"""Of k: what L0 in training may miss it by without a word, under a rule that only a price holds to it."""

FAR = 0.05
"""The same under any other rule, some of which leave part of the budget unspent."""

FROZEN = 0.001
"""Of k: what the calibrated SAE may miss it by on the tokens that it was calibrated on."""

UNSEEN = 0.02
"""Of k: what it may miss it by on other tokens, beside two standard errors."""

VAGUE = 0.1
"""Of k: the standard error on other tokens from which on the calibration tokens are too few to promise k."""

WORSE = 0.05
"""Of the FVU: by how much the fit to k may raise it without a word. Thresholds of training are running means."""


def missed(name: str, config: RunConfig, metadata: Mapping[str, Any]) -> list[str]:
    """A sentence on L0 in training and one on the frozen SAE, where either is not k. See ``finish``."""
    training, calibration = metadata["training"], metadata["calibration"]
    k, l0 = calibration["k"], calibration["l0"]
    l0_train = training["l0_train"]
    sentences = []
    if abs(l0_train - k) > (PRICED if config.sae.allocator.penalised else FAR) * k:
        sentences.append(
            f"run '{name}' ended its training at L0 = {l0_train:.1f} and not at k = {k:g}; frozen it spends "
            f"{l0:.1f}: {_advice(l0_train > k, config, training)}"
        )
    if (frozen := _frozen(calibration)) is not None:
        sentences.append(f"run '{name}' spends {frozen}")
    if (worse := _worse(calibration)) is not None:
        sentences.append(f"run '{name}' explains {worse}")
    return sentences


def _frozen(calibration: Mapping[str, Any]) -> str | None:
    """What the frozen SAE spends, where it is not k, and why."""
    k, l0, tokens, short = (calibration[key] for key in ("k", "l0", "tokens", "short"))
    fitted, se = calibration.get("l0_fitted", l0), calibration.get("l0_se")
    if short and abs(fitted - k) > max(FROZEN * k, 1 / tokens):
        return (
            f"{fitted:.4g} frozen and not k = {k:g}, for {short:,} of {tokens:,} tokens have no more positive "
            "affinities: ask for a smaller k"
        )
    if se is None:
        if abs(l0 - k) <= max(FROZEN * k, 1 / tokens):
            return None
        return f"{l0:.4g} frozen and not k = {k:g}, over {tokens:,} tokens: calibrate on more tokens"
    if abs(l0 - k) <= UNSEEN * k + 2 * se and se <= VAGUE * k:
        return None
    return (
        f"{l0:.4g} ± {se:.2g} frozen on tokens that it was not fitted on, and k = {k:g} cannot be promised from "
        f"{tokens:,} tokens: calibrate on more"
    )


def _worse(calibration: Mapping[str, Any]) -> str | None:
    """What the fit to k cost in FVU, where that is much."""
    before, after = calibration.get("fvu_before"), calibration.get("fvu")
    if before is None or after is None or after <= (1 + WORSE) * before:
        return None
    return (
        f"less of its activations since it was fitted to k = {calibration['k']:g}, FVU {after:.3g} where it was "
        f"{before:.3g}, for it did not learn with that budget: bring its training to k"
    )


def _advice(above: bool, config: RunConfig, training: Mapping[str, Any]) -> str:
    """What brings L0 in training nearer to k."""
    if not config.sae.allocator.penalised:
        return "train for more steps" if above else "train for more steps or ask for a smaller k"
    reports = (training.get(objective.build().name, {}) for objective in config.objectives if objective.prices)
    if any(report.get("at_bound", False) for report in reports):
        return f"{'raise the upper' if above else 'lower the lower'} bound of the price, in 'sparsity'"
    return "train for more steps" if above else "give 'sparsity' a longer reach or a lower start"
