"""The loop: many SAEs on one stream, each as if it were alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations.scale import input_scale
from ..activations.source import Batch, Source, Stream
from ..clock import Clock
from ..device import usable_device
from ..errors import (
    ApportionError,
    BudgetMissed,
    InvalidCheckpoint,
    InvalidInput,
    NonFiniteActivations,
    RunSetAside,
    TrainingDiverged,
)
from ..files import locked, what_is
from ..io.native import load_sae, save_sae
from ..ops.median import geometric_median
from ..progress import Shown, bar
from ..sae import SAE
from ..workspace import Workspace
from .aside import LAST_GOOD, SetAside, read_aside, write_aside
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .configs import RunConfig, TrainConfig
from .finish import finish
from .log import Begun, JsonLines, Sink, check_sinks, open_sink
from .missed import missed
from .plan import check_runs, claim_folder
from .step import Run, train_step
from .tally import Tally, fault_in, weights_are_finite

_TOLD = {"training": ("l0_train", "tokens"), "calibration": ("k", "l0", "tokens", "short")}
"""What the metadata of every SAE that was trained to its end say."""


def train(
    configs: Mapping[str, RunConfig],
    source: Source,
    out: str | Path,
    settings: TrainConfig | None = None,
    *,
    checkpoint_seconds: float = 300.0,
    sinks: Sequence[str] = (),
    progress: Shown = False,
    device: str | torch.device = "cpu",
) -> dict[str, SAE]:
    """Train many SAEs on one stream of activations; each ends bit-equal to the same SAE trained alone.

    ``out/NAME/`` gets the log and, at the end, the frozen, calibrated SAE (``ap.load`` reads it);
    ``out/checkpoints`` what is needed to go on. Calling it again with the same arguments goes on after the last
    checkpoint, bit for bit, or, where everything is done, returns what was saved.

    A run that diverges is set aside and the others go on as if it had never been there. It is not in the result;
    ``out/NAME/set_aside.json`` says why, and ``out/NAME/last-good`` holds the SAE of its last checkpoint, if
    there was one. Later calls may leave it out or name it again.

    Args:
        configs: runs by name (letters, digits, ``._-``).
        source: activations.
        out: a folder, new or of the same training.
        settings: of the stream.
        checkpoint_seconds: time between checkpoints; results do not depend on it.
        sinks: further logs, ``tensorboard`` or ``wandb``.
        progress: show a bar.
        device: where the SAEs live.

    Raises:
        InvalidConfig: a name is unfit, the device is not here, or ``out`` holds a training with other settings.
        InvalidInput: an SAE's width is not the source's, or nothing is held out to calibrate on.
        TrainingDiverged: every run diverged: a loss, a gradient or a weight is not finite.
        StorageFailure, InvalidCheckpoint: what is in ``out`` cannot be written or read.

    Warns:
        BudgetMissed: L0 in training or of the frozen SAE is not k; with what it is, and what helps.
        RunSetAside: a run diverged, and others did not.
    """
    settings = settings or TrainConfig()
    out = Path(out)
    check_runs(configs, source, settings)
    check_sinks(sinks)
    place = usable_device(device)
    with locked(out, "training in"):
        training = claim_folder(out, configs, source, settings)
        saes = _finished(configs, out, place)
        if saes is None:
            session = _Session(configs, source, out, settings, sinks, place, training)
            try:
                session.run(checkpoint_seconds, progress)
                saes = session.finish()
            finally:
                session.close()
        aside = {name: found for name in configs if (found := read_aside(out / name)) is not None}
    if aside and not saes:
        name, first = next(iter(aside.items()))
        raise TrainingDiverged(first.error(name, len(aside) - 1))
    for name, one in aside.items():
        warnings.warn(one.warning(name), RunSetAside, stacklevel=2)
    for name, sae in saes.items():
        for sentence in missed(name, configs[name], sae.metadata):
            warnings.warn(sentence, BudgetMissed, stacklevel=2)
    return saes


def _finished(configs: Mapping[str, RunConfig], out: Path, device: torch.device) -> dict[str, SAE] | None:
    """What a training saved, once every run of it was saved or set aside; None before."""
    left = [name for name in configs if read_aside(out / name) is None]
    if not all(what_is(out / name / "sae.json") is not None for name in left):
        return None
    saes = {name: load_sae(out / name).to(device) for name in left}
    for name, sae in saes.items():
        for group, keys in _TOLD.items():
            if lacking := [key for key in keys if sae.metadata.get(group, {}).get(key) is None]:
                raise InvalidCheckpoint(
                    f"{out / name / 'sae.json'} does not say {group}.{lacking[0]}, so that it is not what this "
                    "training wrote; restore it from a copy, or delete it to go on from the last checkpoint"
                )
    return saes


class _Session:
    """One process's share of a training: from the start, or from the last checkpoint, to the end."""

    def __init__(
        self,
        configs: Mapping[str, RunConfig],
        source: Source,
        out: Path,
        settings: TrainConfig,
        sinks: Sequence[str],
        device: torch.device,
        training: str,
    ) -> None:
        self.source, self.out, self.settings, self.device = source, out, settings, device
        checkpoint = latest_checkpoint(out)
        workspace = Workspace()
        self.runs = {
            name: Run(config, torch.zeros(config.sae.d_in, device=device), workspace)
            for name, config in configs.items()
            if read_aside(out / name) is None
        }
        self.step, self.scale, self.tallies = 0, 1.0, {name: Tally() for name in self.runs}
        state = load_checkpoint(checkpoint, self.runs) if checkpoint else None
        if state is not None:
            self.step, self.scale = int(state["step"]), float(state["scale"])
            self.tallies = {name: Tally(**state["runs"][name]["tally"]) for name in self.runs}
        self.stream: Stream = source.stream(
            settings.batch_size, settings.seed, state["stream"] if state is not None else None
        )
        self.logs = {
            name: JsonLines(out / name / "log.jsonl", state["runs"][name]["log_bytes"] if state else 0)
            for name in self.runs
        }
        begun = {name: Begun(out, name, self.step, training, self._told(run)) for name, run in self.runs.items()}
        self.sinks: dict[str, list[Sink]] = {
            name: [open_sink(sink, begun[name]) for sink in sinks] for name in self.runs
        }

    def _told(self, run: Run) -> dict[str, Any]:
        """All that a run is trained with."""
        run_config, stream = run.config.model_dump(mode="json"), self.settings.model_dump(mode="json")
        return {**run_config, "train": stream, "source": self.source.describe()}

    def run(self, checkpoint_seconds: float, progress: Shown) -> None:
        """All steps that are left. The last checkpoint is that of the end."""
        n_steps, saved_at = self.settings.n_steps, time.monotonic()
        steps = bar(total=n_steps, initial=self.step, desc="train", unit="step", shown=progress)
        with steps:
            while self.step < n_steps and self.runs:
                self._one_step(next(self.stream))
                steps.update()
                if time.monotonic() - saved_at >= checkpoint_seconds and self.step < n_steps:
                    self._save()
                    saved_at = time.monotonic()
        self._save()
        self.stream.close()

    def _one_step(self, batch: Batch) -> None:
        x = batch.x.to(self.device)
        if self.step == 0:
            self.scale = input_scale(x)
        x = x * self.scale
        if self.step == 0:
            self._initialise(x)
        target = None if batch.target is None else batch.target.to(self.device)
        clock = Clock(self.step, self.settings.n_steps, self.step * self.settings.batch_size)
        for name, run in list(self.runs.items()):
            fault = self._step_of(name, run, x, target, clock)
            if fault is not None:
                self._set_aside(name, fault)
        self.step += 1

    def _step_of(self, name: str, run: Run, x: Tensor, target: Tensor | None, clock: Clock) -> str | None:
        """A step of one run and its record; what shows that it diverged, if anything does."""
        started, tally = time.perf_counter(), self.tallies[name]
        try:
            result = train_step(run, x, clock, target=target)
        except Exception:
            if weights_are_finite(run):
                raise
            # A rule that meets such weights may fail in any way.
            return f"its weights are not finite before step {self.step}"
        tally.add(result, clock, time.perf_counter() - started)
        if self.step % self.settings.record_every and self.step != self.settings.n_steps - 1:
            return None
        record = tally.record(run, result, clock)
        fault = fault_in(record)
        if fault is None:
            for sink in (self.logs[name], *self.sinks[name]):
                sink.write(record)
        return fault

    def _initialise(self, x: Tensor) -> None:
        medians: dict[str, Tensor] = {}
        for run in self.runs.values():
            run.sae.transform.initialise(x)
            kind = run.config.sae.transform.digest()
            if kind not in medians:
                medians[kind] = geometric_median(run.sae.transform(x)[0])
            run.begin(medians[kind])

    def _set_aside(self, name: str, fault: str) -> None:
        """Go on without a run. What it leaves is on the disk before the note that it was set aside."""
        run = self.runs.pop(name)
        write_aside(self.out / name, SetAside(self.step, fault, self._keep(name, run, fault)))
        for sink in self.sinks[name]:
            sink.conclude({"set_aside": fault})

    def _keep(self, name: str, run: Run, fault: str) -> int | None:
        """Save the SAE that the last checkpoint holds of a run; returns its step, None if there is none."""
        checkpoint = latest_checkpoint(self.out)
        if checkpoint is None:
            return None
        try:
            state = load_checkpoint(checkpoint, {name: run})
            step, tally = int(state["step"]), Tally(**state["runs"][name]["tally"])
            history = self._history(run, tally, step) | {"set_aside": fault}
            save_sae(finish(run, self.source, self.scale, self.settings, history), self.out / name / LAST_GOOD)
        except (InvalidCheckpoint, InvalidInput, NonFiniteActivations):
            return None  # it was no good state
        return step

    def _save(self) -> None:
        for name, run in list(self.runs.items()):
            if not weights_are_finite(run):
                self._set_aside(name, f"its weights are not finite before step {self.step}")
        if not self.runs:
            return
        state = {
            "scale": self.scale,
            "stream": self.stream.state(),
            "runs": {
                name: {"log_bytes": self.logs[name].position(), "tally": vars(self.tallies[name])}
                for name in self.runs
            },
        }
        save_checkpoint(self.out, self.step, self.runs, state)

    def finish(self) -> dict[str, SAE]:
        """Freeze, calibrate and save every run; one that cannot be is set aside, unless no other can be."""
        saes: dict[str, SAE] = {}
        failed: dict[str, ApportionError] = {}
        for name, run in self.runs.items():
            history = self._history(run, self.tallies[name], self.step)
            try:
                sae = finish(run, self.source, self.scale, self.settings, history)
                save_sae(sae, self.out / name)
            except (InvalidInput, NonFiniteActivations) as error:
                failed[name] = error
                continue
            saes[name] = sae
            for sink in self.sinks[name]:
                sink.conclude(_untold(sae.metadata))
        for name, reason in failed.items():
            if not saes:
                raise reason
            self._set_aside(name, f"it could not be calibrated ({reason})")
        return saes

    def _history(self, run: Run, tally: Tally, step: int) -> dict[str, Any]:
        """How a run was trained, for the metadata of its SAE."""
        return {
            "config": run.config.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "scale": self.scale,
            "steps": step,
            "tokens": step * self.settings.batch_size,
            "l0_train": tally.l0,
            "dead": run.firing.dead_share(),
            "never_fired": run.firing.never_fired(),
            "fvu_train": tally.fvu,
            "tokens_per_s": tally.tokens_per_s,
        }

    def close(self) -> None:
        """Let go of files and threads."""
        self.stream.close()
        for name, log in self.logs.items():
            for sink in (log, *self.sinks[name]):
                sink.close()


def _untold(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of an SAE without what its sinks knew before its first record."""
    training = {key: value for key, value in metadata["training"].items() if key not in ("config", "settings")}
    return {**{key: value for key, value in metadata.items() if key != "source"}, "training": training}
