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


def missed(name: str, config: RunConfig, metadata: Mapping[str, Any]) -> list[str]:
    """A sentence on L0 in training and one on the frozen SAE, where either is not k. See ``finish``."""
    training, calibration = metadata["training"], metadata["calibration"]
    k, l0, tokens = calibration["k"], calibration["l0"], calibration["tokens"]
    l0_train = training["l0_train"]
    sentences = []
    if abs(l0_train - k) > (PRICED if config.sae.allocator.penalised else FAR) * k:
        sentences.append(
            f"run '{name}' ended its training at L0 = {l0_train:.1f} and not at k = {k:g}; frozen it spends "
            f"{l0:.1f}: {_advice(l0_train > k, config, training)}"
        )
    if abs(l0 - k) > max(FROZEN * k, 1 / tokens):
        short = calibration["short"]
        sentences.append(
            f"run '{name}' spends {l0:.4g} frozen and not k = {k:g}, "
            + (
                f"for {short:,} of {tokens:,} tokens have no more positive affinities: ask for a smaller k"
                if short
                else f"over {tokens:,} tokens: calibrate on more tokens"
            )
        )
    return sentences


def _advice(above: bool, config: RunConfig, training: Mapping[str, Any]) -> str:
    """What brings L0 in training nearer to k."""
    if not config.sae.allocator.penalised:
        return "train for more steps" if above else "train for more steps or ask for a smaller k"
    reports = (training.get(objective.build().name, {}) for objective in config.objectives if objective.prices)
    if any(report.get("at_bound", False) for report in reports):
        return f"{'raise the upper' if above else 'lower the lower'} bound of the price, in 'sparsity'"
    return "train for more steps" if above else "give 'sparsity' a longer reach or a lower start"
